"""Predict one case with an ensemble: mean of logits over folds, then of probabilities over configurations.

In a cascade the stage before is predicted first, and its segmentation on the file's grid is prepared as nnU-Net does it
at test time (nnunetv2/inference/data_iterators.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.data.image import Volume
from segpipe.evaluation.calibration import with_temperature
from segpipe.inference import predict, spill
from segpipe.inference.export import (
    LabelMap,
    Probabilities,
    Sink,
    Softmax,
    Uncertainty,
    file_shape,
    segmentation,
)
from segpipe.inference.models import Ensemble
from segpipe.inference.predict import Model, Way
from segpipe.prepare.preprocess import Grid, Prepared, preprocess


@dataclass(frozen=True)
class Asked:
    """What is wanted of a case beside its segmentation.

    probabilities : their dtype, float16 or float32; None for none
    temperature : of the probabilities; 1 leaves them as they are
    """

    probabilities: str | None = None
    temperature: float = 1.0
    uncertainty: bool = False


@dataclass(frozen=True)
class Predicted:
    """A case on its file's grid.

    segmentation : (Z, Y, X) int16, the training's values; spacing_mm : (Z, Y, X)
    probabilities : (heads, Z, Y, X); uncertainty : (Z, Y, X) float32, 0 to 1; None where not asked for
    """

    segmentation: NDArray[np.int16]
    spacing_mm: tuple[float, ...]
    probabilities: Probabilities | None = None
    uncertainty: NDArray[np.float32] | None = None


class Case:
    """A case as it was read, prepared for one configuration after the other.

    The image itself is forgotten when no configuration needs it any more.
    """

    def __init__(self, ensemble: Ensemble, volume: Volume) -> None:
        self.spacing_mm = volume.spacing_mm
        self.image: NDArray[np.float32] | None = volume.array.astype(np.float32, copy=False)
        self.waiting = list(ensemble.models.values())
        self._next: Prepared | None = self._prepare(None)  # the first one has no stage before it

    def prepared(self, previous: NDArray[np.int16] | None) -> Prepared:
        """For the next configuration; previous : what the stage before it segmented."""
        prepared = self._next or self._prepare(previous)
        self._next = None
        return prepared

    def _prepare(self, previous: NDArray[np.int16] | None) -> Prepared:
        model = self.waiting.pop(0)
        assert self.image is not None
        prepared = preprocess(self.image, None, self.spacing_mm, model.content["plan"], model.planned, previous)
        if not self.waiting:
            self.image = None
        return prepared


def predict_case(ensemble: Ensemble, case: Case, way: Way, asked: Asked, scratch: Path) -> Predicted:
    """Segmentation, and what else is asked for.

    scratch : folder for probabilities that do not fit into memory; nothing is left there
    """
    sums = _Sums(ensemble, asked, scratch)
    segmented: dict[str, NDArray[np.int16]] = {}
    for name, model in ensemble.models.items():
        before = model.planned.previous_stage
        prepared = case.prepared(None if before is None else segmented[before])
        members = sums.members(name, model)
        label_map = LabelMap(prepared.grid, model.labels, members)
        wanted = [label_map] if sums.needs_label_map(name) else []
        sinks = [*wanted, *sums.sinks(name, model, prepared.grid)]
        predict.run(model, prepared, way, sinks, apart=members > 1)
        segmented[name] = label_map.array
    return sums.result(segmented, case.spacing_mm)


class _Sums:
    """What is gathered over the configurations of an ensemble."""

    def __init__(self, ensemble: Ensemble, asked: Asked, scratch: Path) -> None:
        self.ensemble, self.asked, self.scratch = ensemble, asked, scratch
        self.stages = {model.planned.previous_stage for model in ensemble.models.values()}
        self.several = len(ensemble.counted) > 1
        self.probabilities: Probabilities | None = None
        self.uncertainty: Uncertainty | None = None

    def members(self, name: str, model: Model) -> int:
        """How many networks' logits come one behind the other: all where they are compared, else their mean."""
        return len(model.networks) if self.asked.uncertainty and name in self.ensemble.counted else 1

    def needs_label_map(self, name: str) -> bool:
        """Whether a configuration's own segmentation counts: of a stage before another, or the only one."""
        return name in self.stages or not self.several

    def sinks(self, name: str, model: Model, grid: Grid) -> Iterator[Sink]:
        """Where the probabilities of a configuration go."""
        if name not in self.ensemble.counted:
            return
        members = self.members(name, model)
        if self.several or self.asked.probabilities:
            if self.probabilities is None:
                exact = self.several or self.asked.temperature != 1
                dtype = "float32" if exact else str(self.asked.probabilities)
                self.probabilities = spill.zeros((len(model.labels.heads), *file_shape(grid)), dtype, self.scratch)
            yield Softmax(self.probabilities, grid, model.labels, self.ensemble.weights[name], members)
        if self.asked.uncertainty:
            is_last = name == [name for name in self.ensemble.models if name in self.ensemble.counted][-1]
            if self.uncertainty is None:
                self.uncertainty = Uncertainty(grid, model.labels, members, is_last)
            self.uncertainty.prepare(grid, members, is_last)
            yield self.uncertainty

    def result(self, segmented: dict[str, NDArray[np.int16]], spacing_mm: tuple[float, ...]) -> Predicted:
        """After the last configuration."""
        label_map = segmented[self.ensemble.counted[-1]]
        if self.several and self.probabilities is not None:
            label_map = segmentation(self.probabilities, self.ensemble.labels)
        probabilities = self.probabilities if self.asked.probabilities else None
        if probabilities is not None:
            with_temperature(probabilities, self.asked.temperature, self.ensemble.labels.has_regions)
        uncertainty = None if self.uncertainty is None else self.uncertainty.array
        return Predicted(label_map, spacing_mm, probabilities, uncertainty)
