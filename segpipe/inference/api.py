"""Prediction from Python: `segpipe.predict(...)` for one call, `segpipe.Predictor(...)` where a model is used often."""

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from segpipe import device as devices
from segpipe.data.image import Volume
from segpipe.errors import SegpipeError, problem, raise_all
from segpipe.inference import images as found_images
from segpipe.inference import memory, models, postprocess, predict_cases
from segpipe.inference.case import Case, Predicted, predict_case
from segpipe.inference.images import Images
from segpipe.inference.predict_cases import Job, Written
from segpipe.inference.presets import PRESETS
from segpipe.params import Validate
from segpipe.params.fields import Section
from segpipe.params.schema import Predict
from segpipe.ranks import ALONE, Ranks

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class Options:
    """Which part of a MODEL predicts, and how.

    configurations : whose probabilities are averaged; None: all that are not the stage before of another one
    folds : whose logits are averaged; None: all numbered ones, or `all` where there is no other
    checkpoint : final or best; weights : raw, or averaged (train.ema)
    preset : accurate or fast; step_size, mirroring, precision : instead of the preset's, as validate in params.yaml
    device : auto, cpu, cuda, cuda:N or mps
    """

    configurations: Sequence[str] | None = None
    folds: Sequence[str | int] | None = None
    checkpoint: str = "final"
    weights: str = "raw"
    preset: str = "accurate"
    step_size: float | None = None
    mirroring: bool | list[int] | None = None
    precision: str | None = None
    device: str = "auto"


class Predictor:
    """A MODEL, loaded once: `results/` of a pipeline, or what `segpipe import-nnunet` wrote.

    start : gives the device of that name; the command leases a GPU, a notebook keeps to the first one
    options : fields of Options
    Raises SegpipeError where something that is asked for is not there.
    """

    def __init__(
        self, model: str | os.PathLike[str], *, start: Callable[[str], torch.device] = devices.use, **options: Any
    ) -> None:
        chosen = Options(**options)
        _require_sense(chosen)
        given = {name: getattr(chosen, name) for name in ("step_size", "mirroring", "precision")}
        self.way = replace(
            PRESETS[chosen.preset], **{name: value for name, value in given.items() if value is not None}
        )
        folds = None if chosen.folds is None else [str(fold) for fold in chosen.folds]
        found = models.find(Path(model), chosen.checkpoint, chosen.configurations, folds)
        paths = [path for of_folds in found.values() for path in of_folds.values()]
        wanted = chosen.configurations or models.counted(found)
        on = start(str(chosen.device))
        with memory.told("the networks of all folds"):
            self.ensemble = models.load(paths, wanted, on, chosen.weights, self.way.precision)

    def files(
        self, images: Paths, out: str | os.PathLike[str], written: Written | None = None, ranks: Ranks = ALONE
    ) -> dict[str, Path]:
        """Predict image files into a folder, and return where each case's segmentation is.

        images : a folder of cases (CASE_0000.nii.gz, one file per channel, or CASE.nii.gz), a file, several files, or
            the folder of a DICOM series
        ranks : who take turns at the cases; each makes this call
        A case that was predicted from the same image in the same way is left as it is.
        Raises SegpipeError, before anything is predicted, where an image would be overwritten; at the end, with all
        cases that could not be predicted.
        """
        written = written or Written()
        _require_known(written)
        several = [Path(path) for path in ([images] if isinstance(images, str | os.PathLike) else images)]
        cases = ranks.same(found_images.at(several, self.ensemble.content))
        job = Job(self.ensemble, cases, self.way, written, Path(out))
        _require_apart(several, cases, job)
        predict_cases.run(job, ranks=ranks)
        return {case: job.files(case)[0] for case in cases.test}

    def array(self, array: NDArray[Any], spacing_mm: Sequence[float], written: Written | None = None) -> Predicted:
        """Predict an image in memory.

        array : (C, Z, Y, X), or (Z, Y, X) for one channel; spacing_mm : (Z, Y, X). Nothing says how the axes
            lie: a model of orientation RAS (`ensemble.content["dataset"]["orientation"]`) needs x to lead to the right,
            y to the front and z up, one of `as-stored` the axes as its training files had them
        written : what is asked for, and the rules that are applied to the segmentation
        Returns segmentation, (Z, Y, X) int16, and what else is asked for, on the same grid.
        """
        written = written or Written()
        _require_known(written)
        predict_cases.require_several(self.ensemble, written)
        case = Case(self.ensemble, self._volume(np.asarray(array), spacing_mm))
        with tempfile.TemporaryDirectory() as scratch:
            predicted = predict_case(self.ensemble, case, self.way, written.asked, Path(scratch))
        labels, spacing = self.ensemble.labels, predicted.spacing_mm
        cleaned = postprocess.apply(predicted.segmentation, labels, written.rules, spacing)
        return replace(predicted, segmentation=cleaned)

    def _volume(self, array: NDArray[Any], spacing_mm: Sequence[float]) -> Volume:
        array = array[None] if array.ndim == 3 else array
        names = self.ensemble.content["channel_names"]
        sound = array.ndim == 4 and len(array) == len(names) and array.size > 0 and np.isfinite(array).all()
        if not sound or len(spacing_mm) != 3 or min(spacing_mm) <= 0:
            found = f"shape {array.shape}, spacing {tuple(spacing_mm)} mm"
            found += "" if np.isfinite(array).all() else ", NaN or infinite values"
            expected = f"finite (C, Z, Y, X) with {len(names)} channels ({', '.join(names)}), spacing (Z, Y, X) in mm"
            raise SegpipeError(
                problem("not an image for this model", where="array", found=found, expected=expected, cure="correct it")
            )
        z, y, x = (float(edge) for edge in spacing_mm)
        return Volume(array.astype(np.float32), (z, y, x), np.diag([x, y, z, 1.0]))


def predict(
    model: str | os.PathLike[str],
    images: Paths | NDArray[Any],
    out: str | os.PathLike[str] | None = None,
    *,
    spacing_mm: Sequence[float] | None = None,
    written: Written | None = None,
    **options: Any,
) -> dict[str, Path] | Predicted:
    """Predict with a MODEL: files into the folder `out`, or an array with its `spacing_mm`.

    options : fields of Options. See Predictor.files and Predictor.array for the rest.
    """
    if isinstance(images, np.ndarray) == (spacing_mm is None) or isinstance(images, np.ndarray) == (out is not None):
        raise SegpipeError(
            problem(
                "neither files nor an array",
                where="segpipe.predict",
                found=f"images: {type(images).__name__}, out: {out}, spacing_mm: {spacing_mm}",
                expected="paths and out, or an array and spacing_mm",
                cure="give what belongs together",
            )
        )
    predictor = Predictor(model, **options)
    if isinstance(images, np.ndarray):
        assert spacing_mm is not None
        return predictor.array(images, spacing_mm, written)
    assert out is not None
    return predictor.files(images, out, written)


def _require_sense(options: Options) -> None:
    for name, value, allowed in (
        ("preset", options.preset, [*PRESETS]),
        ("checkpoint", options.checkpoint, _choices(Validate, "checkpoint")),
        ("weights", options.weights, _choices(Validate, "weights")),
        ("precision", options.precision or "trained", _choices(Validate, "precision")),
    ):
        _require_one_of(name, value, allowed)
    for name, asked in (("configurations", options.configurations), ("folds", options.folds)):
        if asked is not None and (isinstance(asked, str) or len(asked) == 0):
            expected, cure = "a list of at least one, or None", "name those that shall predict"
            raise SegpipeError(problem("nobody to predict", where=name, found=asked, expected=expected, cure=cure))
    if options.step_size is not None and not 0 < options.step_size <= 1:
        expected, cure = "above 0, at most 1", "0.5 is nnU-Net's"
        raise SegpipeError(
            problem("no step of the window", where="step_size", found=options.step_size, expected=expected, cure=cure)
        )
    if not _is_mirroring(options.mirroring):
        expected, cure = "True, False, or a list of the axes 0, 1, 2 (Z, Y, X of the plan)", "correct it"
        raise SegpipeError(
            problem("no way of mirroring", where="mirroring", found=options.mirroring, expected=expected, cure=cure)
        )


def _is_mirroring(value: object) -> bool:
    if not isinstance(value, list | tuple):
        return value is None or isinstance(value, bool)
    return len(value) > 0 and all(type(axis) is int and 0 <= axis <= 2 for axis in value)


def _require_known(written: Written) -> None:
    _require_one_of("Written.probabilities", written.probabilities, _choices(Predict, "probabilities"))
    _require_one_of("Written.dtype", written.dtype, _choices(Validate, "softmax_dtype"))


def _choices(section: type[Section], name: str) -> list[Any]:
    """What params.yaml may say there."""
    return [*get_args(section.model_fields[name].annotation)]


def _require_one_of(name: str, value: object, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        cure, expected = "name one of them", ", ".join(map(str, allowed))
        raise SegpipeError(problem("no such option", where=name, found=value, expected=expected, cure=cure))


def _require_apart(images: Sequence[Path], cases: Images, job: Job) -> None:
    """No image may be overwritten, and nothing else comes into a folder of images."""
    out = job.out.resolve()
    folders = [path for path in images if path.is_dir() and path.resolve() in (out, *out.parents)]
    read = {path.resolve() for case in cases.test for path in cases.files(case)}
    written = [job.out / name for case in cases.test for name in job.written.files(case, cases.label_ending)]
    overwritten = [] if folders else [path for path in written if path.resolve() in read]
    shown = ", ".join(map(str, overwritten[:3])) + (" ..." if len(overwritten) > 3 else "")
    problems = [
        problem(what, where="out", found=found, expected="a folder apart from the images", cure="name another folder")
        for what, found in (
            ("the segmentations would lie among the images", ", ".join(f"{job.out} in {path}" for path in folders)),
            ("images would be overwritten", shown),
        )
        if found
    ]
    raise_all("segmentations", problems)
