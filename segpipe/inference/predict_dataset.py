"""Predict imagesTs of the dataset: what the rule `predict` runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path

from segpipe import device, digest
from segpipe.data.cases import Cases
from segpipe.inference import calibrate, choice, folders, memory, models, postprocess, predict_cases
from segpipe.inference.predict import tidy
from segpipe.inference.predict_cases import Job, Written
from segpipe.params import Params
from segpipe.ranks import ALONE, Ranks

log = getLogger(__name__)

PUBLISHED = ".made_of.json"  # in the folder of the predictions: the digest of all of them


@dataclass(frozen=True)
class Learnt:
    """What the cross-validation says of the prediction, each a file or None where nobody asks for it.

    choice : which configurations count; rules : what is removed of segmentations; calibration : the temperature
    """

    choice: Path | None = None
    rules: Path | None = None
    calibration: Path | None = None


def predict_dataset(
    cases: Cases,
    paths: list[Path],
    configurations: Sequence[str],
    out: Path,
    params: Params,
    learnt: Learnt | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Predict imagesTs into `out`, as `validate` and `predict` of params.yaml say.

    paths : the checkpoints of these configurations and of the stages before them
    configurations : those whose probabilities are averaged, unless `learnt` has a choice among them
    ranks : who take turns at the cases; each makes this call
    Finished cases are kept in an undeclared folder, as a second name of the same files: a killed prediction goes on
    where it stopped, and when an image is added only that one is predicted.
    Raises SegpipeError where cases cannot be predicted, after all others were; then `out` stays as it was.
    """
    settings, learnt = params.validate_, learnt or Learnt()
    counted = choice.chosen(learnt.choice) if learnt.choice else list(configurations)
    state = _state(out)
    with ranks.exclusive(lock(out), "predicting imagesTs") as report:
        on = device.start(params.runtime, memory.gpu_bytes(params))
        shares = dict(zip(counted, params.ensemble.of(counted), strict=True))
        needed = models.needed(paths, counted)
        with memory.told("the networks of all folds"):
            ensemble = models.load(needed, counted, on, settings.weights, settings.precision, shares)
        written = _written(cases, counted, params, learnt)
        job = Job(ensemble, cases, settings, written, state)
        way = job.identity()
        identity = digest.of([way, {case: cases.identity(case) for case in cases.test}])
        job = replace(job, out=state / way)
        if ranks.same(_is_published(replace(job, out=out), identity)):
            return log.info("imagesTs: predicted already, by the same models in the same way")
        predict_cases.run(job, lambda n: report(f"predicting imagesTs, {n} of {len(cases.test)} cases done"), ranks)
        if not ranks.is_first:
            return
        with digest.new_folder(out) as folder:
            folders.describe(folder, cases.labels, cases.orientation)
            for path in (path for case in cases.test for path in job.files(case)):
                digest.link(path, folder / path.name)
            digest.write_json(folder / PUBLISHED, identity)
        tidy(state, keep=way)
    log.info("%d cases predicted by %d models", len(cases.test), len(needed))


def _state(out: Path) -> Path:
    return out.parent / "state" / out.name


def lock(out: Path) -> Path:
    """The file whose lock a prediction of imagesTs holds that writes into `out`."""
    return _state(out) / ".lock"


def _is_published(job: Job, identity: str) -> bool:
    """Whether all is there already: the process that this one waited for may have done the work."""
    path = job.out / PUBLISHED
    there = path.exists() and digest.read_json(path) == identity
    return there and all(file.exists() for case in job.cases.test for file in job.files(case))


def _written(cases: Cases, counted: Sequence[str], params: Params, learnt: Learnt) -> Written:
    rules = postprocess.read(learnt.rules, cases.labels) if learnt.rules else []
    fitted = calibrate.temperature(digest.read_json(learnt.calibration), counted) if learnt.calibration else 1.0
    asked = params.predict
    return Written(asked.probabilities, params.validate_.softmax_dtype, fitted, asked.uncertainty, tuple(rules))
