"""A run to report about, made by hand: no training, but real files, and numbers by the real metrics."""

import csv
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tiny
from numpy.typing import NDArray
from volumes import CHECK, describe, image_array, nifti

from segpipe import digest
from segpipe.data import check
from segpipe.data.cases import Cases
from segpipe.evaluation import intervals, metrics, summary
from segpipe.params import Params
from segpipe.report import results, volumes
from segpipe.report.results import Results

SHAPE = (24, 20, 10)  # x, y, z as in the files
SPACING_MM = (1, 1, 3)  # the same
CLASSES = {"background": 0, "<b>liver</b>": 1, "kidney": 2}
IDENTITY = {"dataset": "d1", "training": "t1", "checkpoint": "final", "validate": "v1"}


def label(shift: int = 0, kidney: bool = True) -> NDArray[np.uint8]:
    """Two blocks, of which a prediction moves the larger one along x. (X, Y, Z)"""
    array = np.zeros(SHAPE, np.uint8)
    array[4 + shift : 14 + shift, 4:14, 2:8] = 1
    if kidney:
        array[16:20, 5:9, 3:6] = 2
    return array


def write_dataset(root: Path, cases: Sequence[str], test: Sequence[str], without_kidney: Sequence[str] = ()) -> None:
    for index, case in enumerate([*cases, *test]):
        of = "Tr" if case in cases else "Ts"
        nifti(root / f"images{of}/{case}_0000.nii.gz", image_array(index, SHAPE), SPACING_MM)
        if case in cases:
            nifti(root / f"labelsTr/{case}.nii.gz", label(kidney=case not in without_kidney), SPACING_MM)
    describe(root, labels=CLASSES, numTraining=len(cases), reference="<a> & b", licence="CC-BY 4.0")


def write_metrics(path: Path, epochs: int, best: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = [name for name in CLASSES if name != "background"]
        columns = ["epoch", "step", "learning_rate", "train_loss", "val_loss", "dice_mean"]
        writer.writerow([*columns, *(f"dice_{name}" for name in names), "dice_ema"])
        for epoch in range(1, epochs + 1):
            dice = best * epoch / epochs
            writer.writerow([epoch, 10 * epoch, 0.01, 1 / epoch, 2 / epoch, dice, dice, "", dice / 2])


def fold_summary(cases: Cases, files: Mapping[str, Path], params: Params, fold: str) -> dict[str, Any]:
    rows = []
    for case, path in files.items():
        entry = cases.entry(case)
        pair = cases.read_segmentation(path), cases.read_label(case)
        of_case = metrics.case_metrics(*pair, cases.labels, None, entry["spacing_mm"], params.evaluate)
        rows.append(summary.case_row(of_case, os.fspath(path), next(iter(entry["label"]))))
    training = {"epochs": 3, "steps": 30, "parameters": 1234}
    return {
        **summary.tables(rows),
        "fold": fold,
        "checkpoint": "final",
        "epoch": 3,
        "digest": f"digest{fold}",
        "precision": "off",
        "training": training,
        "labels": cases.labels.to_json(),
        "identity": IDENTITY,
        "versions": {"segpipe": "0.1.0"},
    }


def crossval_summary(folds: Mapping[str, Any], params: Params) -> dict[str, Any]:
    rows = [row for one in folds.values() for row in one["metric_per_case"]]
    return {
        **summary.tables(rows),
        "confidence": intervals.confidence(
            rows, intervals.units(list(map(str, range(6))), None, None), params.evaluate
        ),
        "folds": {fold: {key: one[key] for key in ("foreground_mean", "mean")} for fold, one in folds.items()},
        "identity": IDENTITY,
    }


def run(
    folder: Path, test: Sequence[str] = ("t0",), changes: Mapping[str, Any] | None = None, configurations: int = 1
) -> Results:
    """Six cases in two folds, each worse by a voxel than the one before; `f` has no kidney, and none was predicted."""
    root, train = folder / "raw/Dataset007_A&B", ["a&b", "b", "c", "d", "e", "f"]
    names = ["3d_fullres", "2d"][:configurations]
    params = tiny.params(dataset=os.fspath(root), configurations=names, **(changes or {}))
    write_dataset(root, train, test, without_kidney=["f"])
    check.check(root, folder / "cases.json", CHECK, 2)
    cases = Cases.read(folder / "cases.json", root)
    digest.write_json(folder / "plan.json", {"configurations": {n: dataclasses.asdict(tiny.planned()) for n in names}})
    trainings, tables = [], {}
    for fold in ("0", "1"):
        held = [case for index, case in enumerate(train) if index % 2 == int(fold)]
        files = {case: folder / f"results/fold_{fold}/segmentations/{case}.nii.gz" for case in held}
        for case, path in files.items():
            nifti(path, label(train.index(case), case != "f"), SPACING_MM)
        content = fold_summary(cases, files, params, fold)
        tables[fold] = content
        for name in names:
            trainings.append(folder / f"results/{name}/fold_{fold}")
            digest.write_json(trainings[-1] / "validation_final/summary.json", {**content, "configuration": name})
            write_metrics(trainings[-1] / "metrics.csv", 3, 0.9)
    for case in test:
        nifti(folder / f"results/predictions/{case}.nii.gz", label(), SPACING_MM)
    digest.write_json(folder / "crossval/summary.json", crossval_summary(tables, params))
    predicted = folder / "results/predictions" if test else None
    measured = folder / "volumes.csv"
    validated = [folder / f"results/fold_{fold}/segmentations" for fold in tables]
    volumes.write(cases, validated, predicted, measured, params.runtime)
    files_of_crossval = sorted((folder / "crossval").glob("*.json"))
    return results.read(cases, folder / "plan.json", files_of_crossval, trainings, measured, predicted, params)
