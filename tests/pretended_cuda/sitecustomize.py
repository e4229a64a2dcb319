"""On PYTHONPATH, this folder makes `import torch` find a CUDA device that is none (device.cpp).

For tests on machines without a GPU: what runs on the device is what a real one would run, on the CPU.
"""

import ctypes
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType


class _Torch(importlib.abc.MetaPathFinder):
    """Finds torch once, where it is, and a loader that loads the device before it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def with_device(torch: ModuleType) -> None:
                # before torch, which asks once and for all whether there is a device
                ctypes.CDLL(os.environ["PRETENDED_CUDA"], mode=ctypes.RTLD_GLOBAL)
                execute(torch)
                import pretended

                pretended.install()

            spec.loader.exec_module = with_device  # type: ignore[method-assign]
        return spec


if "PRETENDED_CUDA" in os.environ:
    sys.meta_path.insert(0, _Torch())
