"""Predict many cases: one path for the rule `predict` (imagesTs), for `segpipe predict` and for segpipe.predict().

A case is read while the one before is predicted, and written while the next one is. Finished cases carry the digest of
what made them and are not predicted again; a case that cannot be predicted keeps none of the others from it.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

from segpipe import digest, launched
from segpipe.data import image
from segpipe.data.cases import Cases
from segpipe.errors import SegpipeError, problem, raise_all
from segpipe.inference import folders, memory, postprocess, softmax_file
from segpipe.inference.case import Asked, Case, Predicted, predict_case
from segpipe.inference.export import Probabilities
from segpipe.inference.models import Ensemble
from segpipe.inference.postprocess import Rule
from segpipe.inference.predict import Way
from segpipe.ranks import ALONE, Ranks

log, of_share = getLogger(__name__), getLogger(launched.SHARE)

PROBABILITIES, UNCERTAINTY = (f"{end}.nii.gz" for end in image.BESIDE_SEGMENTATIONS)
WRITERS = 2  # threads that write while the next case is predicted


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

    def is_done(self, case: str, made_of: str) -> bool:
        """Whether the files of a case are there as they were written, made of the same image in the same way."""
        record = self._recorded(case)
        wanted = {path.name for path in self.files(case)}
        return record.get("made_of") == made_of and wanted == {*record["files"]} and self._are_there(record["files"])

    def _recorded(self, case: str) -> dict[str, Any]:
        """What is known of a finished case; nothing where it has no readable record."""
        try:
            content = digest.read_json(self.record(case))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) and content.keys() == {"made_of", "files"} else {}

    def _are_there(self, files: dict[str, str]) -> bool:
        paths = {name: self.out / name for name in files}
        return all(path.is_file() and digest.of_file(path) == files[name] for name, path in paths.items())

    def record(self, case: str) -> Path:
        """Where the digest of a finished case is."""
        return self.out / folders.RECORDS / f"{case}.json"

    def write(self, case: str, predicted: Predicted, made_of: str) -> None:
        """Write what is asked for; the record comes last. What was written of the case before goes first."""
        for name in self._recorded(case).get("files", []):
            (self.out / name).unlink(missing_ok=True)
        self.record(case).unlink(missing_ok=True)
        label, *others = (self.out / name for name in self.written.files(case, self.cases.label_ending))
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
        files = {path.name: digest.of_file(path) for path in self.files(case)}
        digest.write_json(self.record(case), {"made_of": made_of, "files": files})

    def _write_probabilities(self, path: Path, probabilities: Probabilities, case: str) -> None:
        if path.suffix == ".npz":
            softmax_file.save(path, probabilities, self.written.dtype)
        else:
            self.cases.write_values(path, probabilities, case)


def run(job: Job, done: Callable[[int], None] = lambda n: None, ranks: Ranks = ALONE) -> None:
    """Predict all test cases of a job. A second call for the same folder waits for the first one.

    done : called with the number of cases that are finished
    ranks : who take turns at the cases; each makes this call
    Raises SegpipeError at the end, with all cases that could not be predicted.
    """
    require_several(job.ensemble, job.written)
    names = job.cases.test
    with ranks.exclusive(lock(job.out), f"predicting {len(names)} cases"):
        ranks.first_before_others(lambda: folders.describe(job.out, job.cases.labels, job.cases.orientation))
        identity = job.identity()
        done_before = ranks.collected([_is_done(job, case, identity) for case in ranks.own(names)])
        todo = [case for case, is_done in zip(names, done_before, strict=True) if not is_done]
        log.info("%d cases, %d of them predicted before", len(names), len(names) - len(todo))
        own = ranks.own(todo)
        problems = _Run(job, identity).all(own, lambda n: done(min(len(names), len(names) - len(todo) + n * ranks.n)))
        said = ranks.collected([problems.get(case) for case in own])
        if ranks.is_first:
            raise_all("cases that could not be predicted", [text for text in said if text])


def lock(out: Path) -> Path:
    """The file whose lock a call holds that predicts cases into `out`."""
    return out / folders.RECORDS / ".lock"


def require_several(ensemble: Ensemble, written: Written) -> None:
    """Raise SegpipeError where models shall disagree and there is only one."""
    members = sum(len(ensemble.models[name].networks) for name in ensemble.counted)
    if written.uncertainty and members < 2:
        raise SegpipeError(
            problem(
                "no uncertainty without several models",
                where=", ".join(ensemble.counted),
                found="one fold of one configuration",
                expected="several folds or configurations, which may disagree",
                cure="predict with more of them, or without uncertainty",
            )
        )


def _is_done(job: Job, case: str, identity: str) -> bool:
    """A file that cannot be read is not done, and named when its turn comes."""
    try:
        return job.record(case).is_file() and job.is_done(case, digest.of([identity, job.cases.identity(case)]))
    except (SegpipeError, OSError):
        return False


@dataclass(frozen=True)
class _Read:
    """A case that was read. made_of : digest of its files; is_small : whether the memory holds another one beside it"""

    case: Case
    made_of: str
    is_small: bool


class _Run:
    """The cases of a job, one after the other."""

    def __init__(self, job: Job, identity: str) -> None:
        self.job, self.identity = job, identity
        self.problems: dict[str, str] = {}
        self.waiting: deque[tuple[str, Future[None]]] = deque()

    def all(self, names: Sequence[str], done: Callable[[int], None]) -> dict[str, str]:
        """Predict them; what was wrong with each that failed."""
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(WRITERS) as writers:
            following: Future[_Read] | None = None
            for index, name in enumerate(names):
                ahead, following = following, None
                read = self._read(name, ahead)
                if read is None:
                    continue
                if read.is_small and index + 1 < len(names):
                    following = reader.submit(self._load, names[index + 1])
                if predicted := self._predict(name, read.case):
                    self.waiting.append((name, writers.submit(self.job.write, name, predicted, read.made_of)))
                    of_share.info("%s predicted", name)
                del predicted, read  # or they would be there while the next case is predicted
                self._let_finish(WRITERS - 1)
                done(index + 1)
            self._let_finish(0)
        return self.problems

    def _load(self, name: str) -> _Read:
        made_of = digest.of([self.identity, self.job.cases.identity(name)])
        volume = self.job.cases.read_image(name)
        memory.require(name, self.job.ensemble, volume, self.job.written.uncertainty)
        return _Read(Case(self.job.ensemble, volume), made_of, memory.fits_twice(self.job.ensemble, volume))

    def _read(self, name: str, ahead: "Future[_Read] | None") -> _Read | None:
        """A case, read ahead or now. One that did not fit beside others is read again when they are gone."""
        if ahead is not None and (error := ahead.exception()) is None:
            return ahead.result()
        if ahead is None or memory.is_exhausted(error):
            self._let_finish(0)
            try:
                return self._load(name)
            except Exception as found:
                error = found
        self._failed(name, error)
        return None

    def _predict(self, name: str, case: Case) -> Predicted | None:
        try:
            return predict_case(self.job.ensemble, case, self.job.way, self.job.written.asked, self.job.out)
        except Exception as error:
            self._failed(name, error)
            return None

    def _let_finish(self, most: int) -> None:
        """Wait until at most so many cases are still being written. A full disk ends the call."""
        while len(self.waiting) > most:
            name, future = self.waiting.popleft()
            error = future.exception()
            if isinstance(error, OSError):
                raise error
            self._failed(name, error)

    def _failed(self, name: str, error: BaseException | None) -> None:
        """Note what is wrong with one case, unless it is no fault of its own; what nobody expected ends the call."""
        if error is None:
            return
        if not (isinstance(error, SegpipeError | OSError) or memory.is_exhausted(error)):
            raise error
        if memory.is_exhausted(error) and not isinstance(error, SegpipeError):
            error = memory.exhausted(name, error)
        said = str(error) if isinstance(error, SegpipeError) else f"{name}: {type(error).__name__}: {error}"
        log.error("%s is left out: %s", name, said)
        self.problems[name] = said
