"""The processes that training_speed.py measures: started, told what to measure, stopped while others are measured."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from running import own_path, pss_mib

HERE = Path(__file__).resolve().parent
SAMPLE_S = 0.2
Answer = dict[str, Any]


class Side:
    """One program in a process group of its own. error : the end of what it said, once it has died"""

    def __init__(self, name: str, command: list[Any], environment: dict[str, str], folder: Path) -> None:
        self.name, self.peak_mib = name, 0.0
        self.error: str | None = None
        self.log = folder / f"{name.replace(' ', '_')}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def tell(self, mode: str, steps: int, tune: bool = True) -> None:
        """Go on, and measure; `answer` has to follow. tune : cuDNN may try which of its algorithms is fastest"""
        if self.error is None:
            self._signal(signal.SIGCONT)
            assert self.process.stdin is not None
            with suppress(BrokenPipeError):
                self.process.stdin.write(json.dumps({"mode": mode, "steps": steps, "tune": tune}) + "\n")
                self.process.stdin.flush()

    def answer(self) -> Answer | None:
        """What the process says next, which is stopped then; None where it has died."""
        if self.error is not None:
            return None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.error = self.log.read_text(errors="replace")[-1500:]
            print(f"{self.name} died:\n{self.error}", file=sys.stderr)
            return None
        self._signal(signal.SIGSTOP)
        answer: Answer = json.loads(line)
        return answer

    def ask(self, mode: str, steps: int) -> Answer | None:
        """Measure, and wait for it."""
        self.tell(mode, steps)
        return self.answer()

    def close(self) -> None:
        """End it, with its background processes."""
        self._signal(signal.SIGKILL)
        self.process.wait()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note the largest host memory of the processes meanwhile."""
        over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(over,))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(SAMPLE_S):
            self.peak_mib = max(self.peak_mib, pss_mib(self.process.pid))

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def segpipe_side(project: Path, configuration: str, variant: str = "") -> Side:
    """segpipe on a project. variant : what it has in place of settings of `runtime`, with commas: compile=graphs"""
    command = [
        sys.executable,
        HERE / "segpipe_training_speed.py",
        project,
        configuration,
        *filter(None, variant.split(",")),
    ]
    return Side(f"segpipe, {variant}" if variant else "segpipe", command, own_path(), project)


def nnunet_side(
    python: Path, dataset: Path, configuration: str, device: str, threads: int, compiled: bool | None
) -> Side:
    """nnU-Net on cases that `nnunet_prepare` prepared. compiled : None leaves it to nnU-Net"""
    name = "nnU-Net, not compiled" if compiled is False else "nnU-Net"
    scratch = dataset.parents[1]
    compile_ = {} if compiled is None else {"nnUNet_compile": str(compiled)}
    command = [python, HERE / "nnunet_training_speed.py", "serve", dataset, configuration, device, threads]
    return Side(name, command, _folders(scratch, name) | compile_, scratch)


def nnunet_prepare(python: Path, datasets: list[Path]) -> None:
    """Bring exported cases into the format of nnU-Net's own preprocessing."""
    command = [python, HERE / "nnunet_training_speed.py", "prepare", *datasets]
    environment = {**os.environ, **_folders(datasets[0].parents[1], "prepare")}
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"nnU-Net did not prepare\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")


def _folders(scratch: Path, name: str) -> dict[str, str]:
    results = scratch / f"nnunet_results_{name}"
    own = {"raw": scratch / "nnunet_raw", "preprocessed": scratch / "nnunet_preprocessed", "results": results}
    return {f"nnUNet_{key}": str(path) for key, path in own.items()}
