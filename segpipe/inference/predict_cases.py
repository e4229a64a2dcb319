"""Predict whole cases with an ensemble: mean of logits over folds, then of probabilities over configurations.

One path for the rule `predict` (imagesTs of the dataset) and for `segpipe predict` (a folder of images). In a cascade
the stage before is predicted first, and its segmentation on the file's grid is prepared as nnU-Net does it at test time
(nnunetv2/inference/data_iterators.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe import device, digest
from segpipe.data import image
from segpipe.data.cases import Cases
from segpipe.data.image import Volume
from segpipe.errors import SegpipeError, raise_all
from segpipe.inference import export, images, models, predict, softmax_file
from segpipe.inference.models import Ensemble
from segpipe.inference.predict import Way, tidy
from segpipe.params import Params
from segpipe.prepare.preprocess import preprocess

log = getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """How cases are predicted, as the options of a call say it."""

    step_size: float
    mirroring: bool


def predict_dataset(cases: Cases, paths: list[Path], counted: Sequence[str], out: Path, params: Params) -> None:
    """Predict imagesTs into `out`.

    paths : the checkpoints; counted : the configurations of which the probabilities are averaged
    Finished cases are kept in an undeclared folder, so a killed prediction goes on where it stopped.
    """
    settings = params.validate_
    state = out.parent / "state" / out.name
    with digest.exclusive(state / ".lock", "predicting imagesTs") as report:
        ensemble = models.load(paths, counted, device.start(params.runtime), settings.weights)
        way = [settings.step_size, settings.mirroring, settings.weights, digest.of_code("predict")]
        files = {name: model.files for name, model in ensemble.models.items()}
        identity = digest.of([files, ensemble.counted, way])
        for index, case in enumerate(cases.test):
            target = state / identity / f"{case}{cases.label_ending}"
            wanted = digest.of([identity, cases.identity(case)])
            if not _is_done(target, wanted):
                probabilities = of_case(ensemble, cases.read_image(case), settings)
                cases.write_segmentation(target, export.segmentation(probabilities, cases.labels), case)
                digest.write_json(_record(target), wanted)
            report(f"predicting imagesTs, {index + 1} of {len(cases.test)} cases done")
        with digest.new_folder(out) as folder:
            for case in cases.test:
                image.copy(state / identity / f"{case}{cases.label_ending}", folder)
        tidy(state)
    log.info("%d cases predicted by %d models", len(cases.test), len(paths))


def _record(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def _is_done(target: Path, wanted: str) -> bool:
    return target.exists() and _record(target).exists() and digest.read_json(_record(target)) == wanted


def predict_folder(ensemble: Ensemble, folder: Path, out: Path, way: Way, probabilities: bool) -> None:
    """Predict the images of a folder: CASE.ext and, where asked for, CASE.npz with `probabilities` (heads, Z, Y, X).

    A case that cannot be read keeps none of the others from being predicted.
    Raises SegpipeError at the end, with all cases that could not be predicted.
    """
    cases = images.in_folder(folder, ensemble.content)
    problems = []
    for case in cases.test:
        try:
            predicted = of_case(ensemble, cases.read_image(case), way)
        except SegpipeError as error:
            log.error("%s is left out", case)
            problems.append(str(error))
            continue
        if probabilities:
            softmax_file.save(out / f"{case}.npz", predicted, "float32")
        segmentation = export.segmentation(predicted, cases.labels)
        cases.write_segmentation(out / f"{case}{cases.label_ending}", segmentation, case)
        log.info("%s predicted", case)
    log.info("%d of %d cases predicted into %s", len(cases.test) - len(problems), len(cases.test), out)
    raise_all("cases that could not be predicted", problems)


def of_case(ensemble: Ensemble, volume: Volume, way: Way) -> NDArray[np.float32]:
    """Probabilities of a case as it was read, (heads, Z, Y, X) on its file's grid."""
    array = volume.array.astype(np.float32, copy=False)
    segmented: dict[str, NDArray[np.int16]] = {}
    total: NDArray[np.float32] | None = None
    stages = {model.planned.previous_stage for model in ensemble.models.values()}
    for name, model in ensemble.models.items():
        before = model.planned.previous_stage
        previous = None if before is None else segmented[before]
        prepared = preprocess(array, None, volume.spacing_mm, model.content["plan"], model.planned, previous)
        one = predict.probabilities(model, prepared, way)
        if name in stages:
            segmented[name] = export.segmentation(one, model.labels)
        if name in ensemble.counted:
            total = one if total is None else total + one
    assert total is not None  # an ensemble counts one configuration at least
    return total / np.float32(len(ensemble.counted))
