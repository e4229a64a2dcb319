"""Validation folders as the rule `validate` writes them, with random softmax: what ensemble, choice and rules read."""

from pathlib import Path

import numpy as np
import scipy.special

from segpipe import digest
from segpipe.data import image
from segpipe.evaluation import summary
from segpipe.evaluation.overlap import case_overlap
from segpipe.inference import softmax_file

IDENTITY = {"dataset": "d", "training": "t", "checkpoint": "final", "validate": "v"}


def random_softmax(prepared, case, seed, near=0.0):
    """Noise, led towards the label of the case."""
    label = prepared.cases.read_label(case)
    logits = 2 * np.random.default_rng(seed).normal(size=(4, *label.shape)).astype(np.float32)
    np.put_along_axis(logits, label[None].astype(int), near + np.take_along_axis(logits, label[None].astype(int), 0), 0)
    return scipy.special.softmax(logits, axis=0)


def member(prepared, configuration, seed, dtype="float32", cases=None, fold="0", near=0.0, **identity):
    """A validation folder with random softmax; by default of the first two cases."""
    folder = Path(f"results/{configuration}/fold_{fold}/validation_final")
    rows = []
    for case in cases or prepared.cases.training[:2]:
        softmax = random_softmax(prepared, case, seed, near)
        softmax_file.save(folder / f"softmax/{case}.npz", softmax, dtype)
        label = softmax.argmax(0)
        path = folder / f"segmentations/{case}.nii.gz"
        image.write_label_like(path, label, prepared.cases.image_path(case))
        numbers = case_overlap(label, prepared.cases.read_label(case), prepared.cases.labels, None)
        rows.append(summary.case_row(numbers, str(path), f"labelsTr/{case}.nii.gz"))
    content = {
        **summary.tables(rows),
        "fold": fold,
        "configuration": configuration,
        "checkpoint": "final",
        "epoch": 3,
        "labels": prepared.cases.content["labels"],
        "digest": f"digest of {configuration}",
        "identity": {**IDENTITY, "training": configuration, **identity},
        "settings": {},
        "training": {"epochs": 3 + seed},
        "precision": "float32",
    }
    digest.write_json(folder / "summary.json", content)
    return folder
