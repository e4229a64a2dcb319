"""libnvidia-ml.so.1 of GPUs that are not there, as far as segpipe asks it: it says what $PRETENDED_GPUS does.

That is a JSON file, read anew by each process and each time, with one object per GPU: uuid, name, total, used (bytes),
instances (the same, of a divided one), forbidden (not this job's), mode (as nvmlComputeMode_t); or null: a driver that
does not run.
"""

import ctypes
import json
import os
from pathlib import Path

FAILED = 999  # nvmlReturn_t: unknown error
SYSTEM = ctypes.CDLL


class Library(SYSTEM):
    """Instead of ctypes.CDLL."""

    def __new__(cls, name, *arguments, **more):
        if name != "libnvidia-ml.so.1":
            return SYSTEM(name, *arguments, **more)
        if "PRETENDED_GPUS" not in os.environ:
            raise OSError(f"{name}: cannot open shared object file")
        return Nvml(json.loads(Path(os.environ["PRETENDED_GPUS"]).read_text()))


class Nvml:
    def __init__(self, gpus):
        self.gpus = gpus

    def _of(self, handle):
        """Handle 203 is the third instance of the second GPU, 200 that GPU."""
        gpu, part = divmod(handle.value, 100)
        return self.gpus[gpu - 1]["instances"][part - 1] if part else self.gpus[gpu - 1]

    def nvmlInit_v2(self):
        return FAILED if self.gpus is None else 0

    def nvmlShutdown(self):
        return 0

    def nvmlDeviceGetCount_v2(self, n):
        n._obj.value = len(self.gpus)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, number, handle):
        handle._obj.value = 100 * (number + 1)
        return FAILED if self.gpus[number].get("forbidden") else 0

    def nvmlDeviceGetMigMode(self, handle, now, later):
        now._obj.value = later._obj.value = "instances" in self._of(handle)
        return 0 if now._obj.value else FAILED  # most GPUs cannot be divided

    def nvmlDeviceGetMaxMigDeviceCount(self, handle, most):
        most._obj.value = 7
        return 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle, number, instance):
        there = number % 2 == 0 and number // 2 < len(self._of(handle)["instances"])  # with gaps, as they may be
        instance._obj.value = handle.value + number // 2 + 1
        return 0 if there else FAILED

    def nvmlDeviceGetMemoryInfo(self, handle, memory):
        gpu = self._of(handle)
        memory._obj.total, memory._obj.used = gpu["total"], gpu["used"]
        memory._obj.free = gpu["total"] - gpu["used"]
        return 0

    def nvmlDeviceGetComputeMode(self, handle, mode):
        gpu = self._of(handle)
        mode._obj.value = gpu.get("mode", 0)
        return 0

    def nvmlSystemGetDriverVersion(self, text, n_bytes):
        text.value = b"580.65.06"
        return 0

    def nvmlDeviceGetUUID(self, handle, text, n_bytes):
        text.value = self._of(handle)["uuid"].encode()
        return 0

    def nvmlDeviceGetName(self, handle, text, n_bytes):
        text.value = self._of(handle)["name"].encode()
        return 0
