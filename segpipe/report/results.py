"""What the page is made of: the files of a run, read once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from segpipe import digest
from segpipe.data.cases import Cases
from segpipe.evaluation import summary
from segpipe.params import Params
from segpipe.report import curves, volumes
from segpipe.report.curves import Rows

Json = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One validation case: its numbers by class, as summary.json calls them, and where its segmentation lies."""

    name: str
    fold: str
    metrics: dict[str, dict[str, float | None]]
    prediction: Path

    def mean(self, metric: str) -> float | None:
        """Over the classes that have a number; None where none has."""
        known = [value for numbers in self.metrics.values() if (value := numbers.get(metric)) is not None]
        return sum(known) / len(known) if known else None

    @property
    def dice(self) -> float | None:
        """Mean foreground Dice."""
        return self.mean("Dice")


@dataclass(frozen=True)
class Results:
    """A run.

    validations, metrics : summary and lines of metrics.csv by configuration and fold
    files : those of the cross-validation, by stem: summary, model_choice, postprocessing, calibration
    predictions : the folder with the segmentations of imagesTs, if there are test images
    """

    params: Params
    cases: Cases
    plan: Json
    crossval: Json
    validations: Mapping[str, Mapping[str, Json]]
    metrics: Mapping[str, Mapping[str, Rows]]
    files: Mapping[str, Json]
    volumes: list[volumes.Row]
    predictions: Path | None

    @cached_property
    def validated(self) -> list[Case]:
        """All validation cases, the worst first; those without a Dice at the end."""
        ending = self.cases.label_ending
        found = [
            Case(path.name.removesuffix(ending), _fold_of(path), row["metrics"], path)
            for row in self.crossval["metric_per_case"]
            for path in [Path(row["prediction_file"])]
        ]
        return sorted(found, key=lambda case: (case.dice is None, case.dice or 0.0, case.name))

    def of_configuration(self, configuration: str) -> Json:
        """The tables of summary.json over the cases of all folds of one configuration."""
        folds = self.validations[configuration].values()
        return summary.tables([row for fold in folds for row in fold["metric_per_case"]])

    @property
    def first_validation(self) -> Json:
        """One of the validations, for what they have in common."""
        return next(iter(next(iter(self.validations.values())).values()))


def _fold_of(path: Path) -> str:
    """`0` of results/fold_0/segmentations/case.nii.gz."""
    return path.parent.parent.name.removeprefix("fold_")


def read(
    cases: Cases,
    plan: Path,
    crossval: Sequence[Path],
    trainings: Sequence[Path],
    measured: Path,
    predictions: Path | None,
    params: Params,
) -> Results:
    """Read everything but images.

    crossval : files of the cross-validation, summary.json and what else there is
    trainings : folders results/<configuration>/fold_<k>, each with metrics.csv and the validation that counts
    """
    files = {path.stem: digest.read_json(path) for path in crossval}
    folder = f"validation_{params.validate_.checkpoint}"
    validations: dict[str, dict[str, Json]] = {}
    metrics: dict[str, dict[str, Rows]] = {}
    for training in trainings:
        configuration, fold = training.parent.name, training.name.removeprefix("fold_")
        validations.setdefault(configuration, {})[fold] = digest.read_json(training / folder / "summary.json")
        metrics.setdefault(configuration, {})[fold] = curves.read(training / "metrics.csv")
    return Results(
        params,
        cases,
        digest.read_json(plan),
        files["summary"],
        validations,
        metrics,
        files,
        volumes.read(measured),
        predictions,
    )
