"""What a step has worked out of each case, kept until the step is done: a killed one goes on where it stopped.

It lies in a folder that no rule declares, under the digest of all that determines it.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

from segpipe import digest
from segpipe.inference.predict import tidy

log = getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """The finished cases of a step. Who uses it holds the lock of what the step writes.

    folder : of this step alone
    identity : digest of all that determines what is kept
    """

    folder: Path
    identity: str

    @classmethod
    def of(cls, folder: Path, made_of: Any) -> "Kept":
        """What is kept of the same inputs, settings and code; that of others is removed."""
        identity = digest.of(made_of)
        tidy(folder, identity)
        return cls(folder, identity)

    def path(self, name: str) -> Path:
        """A file, or a folder, of what is kept."""
        return self.folder / self.identity / name

    def each(
        self,
        part: str,
        cases: Sequence[str],
        work: Callable[[str], Any],
        at_once: int,
        file: Callable[[str], Path] | None = None,
    ) -> list[Any]:
        """What `work` says of every case, as JSON has it, several at once; of a case that is done what it said then.

        part : of the step, by name
        file : what `work` writes beside it, without which a case is not done
        """

        def record(case: str) -> Path:
            return self.path(part) / f"{case}.json"

        def is_done(case: str) -> bool:
            return record(case).is_file() and (file is None or file(case).is_file())

        def say(case: str) -> Any:
            if not is_done(case):
                digest.write_text(record(case), json.dumps(work(case), allow_nan=False))
            return digest.read_json(record(case))

        n_done = sum(map(is_done, cases))
        if n_done:
            log.info("%s: %d of %d cases were done before", part, n_done, len(cases))
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(say, cases))

    def remove(self) -> None:
        """The step is done."""
        shutil.rmtree(self.folder, ignore_errors=True)
