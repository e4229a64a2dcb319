"""Predict many cases: one path for the rule `predict` (imagesTs), for `segpipe predict` and for segpipe.predict().

A case is read while the one before is predicted, and written while the next one is. Finished cases carry the digest of
what made them and are not predicted again; a case that cannot be predicted keeps none of the others from it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from logging import getLogger
from pathlib import Path

import torch

from segpipe import digest
from segpipe.data import image
from segpipe.data.cases import Cases
from segpipe.errors import SegpipeError, problem, raise_all
from segpipe.inference import folders, memory, postprocess, softmax_file
from segpipe.inference.case import Asked, Case, Predicted, predict_case
from segpipe.inference.export import Probabilities
from segpipe.inference.models import Ensemble
from segpipe.inference.postprocess import Rule
from segpipe.inference.predict import Way

log = getLogger(__name__)

PROBABILITIES, UNCERTAINTY = (f"{end}.nii.gz" for end in folders.NO_SEGMENTATIONS)
WRITERS = 2  # threads that write while the next case is predicted
OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)


@dataclass(frozen=True)
class Written:
    """What is written of a case.

    probabilities : none, npz (CASE.npz) or nifti (CASE_probabilities.nii.gz); dtype : in CASE.npz
    temperature : of the probabilities
    uncertainty : whether CASE_uncertainty.nii.gz
    rules : what is removed of a segmentation before it is written
    """

    probabilities: str = "none"
    dtype: str = "float16"
    temperature: float = 1.0
    uncertainty: bool = False
    rules: tuple[Rule, ...] = ()

    @property
    def asked(self) -> Asked:
        """What has to be predicted for it."""
        dtype = {"none": None, "npz": self.dtype, "nifti": "float32"}[self.probabilities]
        return Asked(dtype, self.temperature, self.uncertainty)

    def files(self, case: str, label_ending: str) -> list[str]:
        """Names of a case's files, the segmentation first."""
        beside = {"none": [], "npz": [f"{case}.npz"], "nifti": [f"{case}{PROBABILITIES}"]}[self.probabilities]
        return [f"{case}{label_ending}", *beside, *([f"{case}{UNCERTAINTY}"] if self.uncertainty else [])]


@dataclass(frozen=True)
class Job:
    """Cases to be predicted into a folder."""

    ensemble: Ensemble
    cases: Cases
    way: Way
    written: Written
    out: Path

    def files(self, case: str) -> list[Path]:
        """All files of a case, with those that belong to its segmentation."""
        label, *others = (self.out / name for name in self.written.files(case, self.cases.label_ending))
        return [label, *(image.companions(label) if label.exists() else []), *others]

    def identity(self) -> str:
        """Of how all cases are predicted and written."""
        of_all = self.ensemble.models.items()
        models = {name: [model.files, model.weights, str(model.dtype)] for name, model in of_all}
        way = [self.way.step_size, self.way.mirroring, asdict(self.written), digest.of_code("predict")]
        return digest.of([models, self.ensemble.weights, way])

    def is_done(self, case: str, identity: str) -> bool:
        """Whether the files of a case are there, made of the same image in the same way."""
        record = self.record(case)
        done = record.exists() and all(path.exists() for path in self.files(case))
        return done and digest.read_json(record) == digest.of([identity, self.cases.identity(case)])

    def record(self, case: str) -> Path:
        """Where the digest of a finished case is."""
        return self.out / folders.RECORDS / f"{case}.json"

    def write(self, case: str, predicted: Predicted, made_of: str) -> None:
        """Write what is asked for; the record comes last."""
        label, *others = (self.out / name for name in self.written.files(case, self.cases.label_ending))
        self.record(case).unlink(missing_ok=True)
        labels, rules = self.cases.labels, self.written.rules
        segmentation = postprocess.apply(predicted.segmentation, labels, rules, predicted.spacing_mm)
        self.cases.write_segmentation(label, segmentation, case)
        for path in others:
            if path.name.endswith(UNCERTAINTY):
                assert predicted.uncertainty is not None
                self.cases.write_values(path, predicted.uncertainty[None], case)
            else:
                assert predicted.probabilities is not None
                self._write_probabilities(path, predicted.probabilities, case)
        digest.write_json(self.record(case), made_of)

    def _write_probabilities(self, path: Path, probabilities: Probabilities, case: str) -> None:
        if path.suffix == ".npz":
            softmax_file.save(path, probabilities, self.written.dtype)
        else:
            self.cases.write_values(path, probabilities, case)


def run(job: Job, done: Callable[[int], None] = lambda n: None) -> None:
    """Predict all test cases of a job.

    done : called with the number of cases that are finished
    Raises SegpipeError at the end, with all cases that could not be predicted.
    """
    _require_several(job)
    identity, problems = job.identity(), []
    names = job.cases.test
    folders.describe(job.out, job.cases.labels, job.cases.orientation)
    waiting: deque[Future[None]] = deque()
    finished = 0
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(WRITERS) as writers:
        todo = [case for case in names if not _found_done(job, case, identity)]
        log.info("%d cases, %d of them predicted before", len(names), len(names) - len(todo))
        for case, future in _read_ahead(job, todo, reader):
            try:
                read = future.result()
                predicted = predict_case(job.ensemble, read.case, job.way, job.written.asked, job.out)
            except (SegpipeError, *OUT_OF_MEMORY) as error:
                log.error("%s is left out", case)
                problems.append(str(error) or f"{case}: out of memory ({type(error).__name__})")
                continue
            waiting.append(writers.submit(job.write, case, predicted, digest.of([identity, read.made_of])))
            if len(waiting) >= WRITERS:
                waiting.popleft().result()
            finished += 1
            log.info("%s predicted", case)
            done(len(names) - len(todo) + finished)
        for written in waiting:
            written.result()
    raise_all("cases that could not be predicted", problems)


def _require_several(job: Job) -> None:
    members = sum(len(job.ensemble.models[name].networks) for name in job.ensemble.counted)
    if job.written.uncertainty and members < 2:
        raise SegpipeError(
            problem(
                "no uncertainty without several models",
                where=", ".join(job.ensemble.counted),
                found="one fold of one configuration",
                expected="several folds or configurations, which may disagree",
                cure="predict with more of them, or without uncertainty",
            )
        )


def _found_done(job: Job, case: str, identity: str) -> bool:
    """A file that cannot be read is not done, and named when its turn comes."""
    try:
        return job.is_done(case, identity)
    except (SegpipeError, OSError):
        return False


@dataclass(frozen=True)
class _Read:
    """A case that was read. made_of : digest of its files; is_small : whether the memory holds another one beside it"""

    case: Case
    made_of: str
    is_small: bool


def _read(job: Job, name: str) -> _Read:
    made_of, volume = job.cases.identity(name), job.cases.read_image(name)
    memory.require(name, job.ensemble, volume)
    return _Read(Case(job.ensemble, volume), made_of, memory.fits_twice(job.ensemble, volume))


def _read_ahead(job: Job, names: Sequence[str], reader: ThreadPoolExecutor) -> Iterator[tuple[str, Future[_Read]]]:
    """Each case; the next one is read meanwhile, where the memory holds both."""
    following: Future[_Read] | None = None
    for index, name in enumerate(names):
        current = following or reader.submit(_read, job, name)
        following = None
        is_small = current.exception() is not None or current.result().is_small
        if is_small and index + 1 < len(names):
            following = reader.submit(_read, job, names[index + 1])
        yield name, current
