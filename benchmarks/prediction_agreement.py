"""Whether two programs predicted the same, and whether two evaluations say the same. See prediction.py."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from segpipe.data import image

FAR_APART = 2e-3  # of two probabilities
COMPARED = ("Dice", "IoU", "TP", "FP", "FN", "TN", "n_pred", "n_ref")  # what nnU-Net's summary.json holds


def compared(outs: dict[str, Path], labels: Path | None) -> dict[str, Any]:
    """Segmentations and probabilities of both programs, by case the worst, and their Dice, over all cases the mean.

    outs : of segpipe and nnunetv2; labels : None where nobody knows them
    """
    ours, theirs = outs["segpipe"], outs["nnunetv2"]
    description = json.loads((theirs / "dataset.json").read_text())
    classes = {name: value for name, value in description["labels"].items() if value}
    ending = description["file_ending"]
    rows, between, against = [], [], {side: [] for side in outs}
    for path in sorted(theirs.glob("*.npz")):
        pair = {side: image.read_label(out / f"{path.stem}{ending}").array[0] for side, out in outs.items()}
        rows.append(_difference(*(np.load(out / path.name)["probabilities"] for out in (ours, theirs))))
        rows[-1]["equal_voxels"] = float((pair["segpipe"] == pair["nnunetv2"]).mean())
        between.append(dice(pair["segpipe"], pair["nnunetv2"], classes))
        if labels is not None:
            label = image.read_label(labels / f"{path.stem}{ending}").array[0]
            for side, found in pair.items():
                against[side].append(dice(found, label, classes))
    return {
        "equal_voxels": min(row["equal_voxels"] for row in rows),
        "equal_voxels_of_all": float(np.mean([row["equal_voxels"] for row in rows])),
        "largest_difference": max(row["largest"] for row in rows),
        "voxels_further_apart": max(row["further"] for row in rows),
        "dice_between": float(np.nanmean(between)),
        "dice": {side: float(np.nanmean(values)) for side, values in against.items() if values},
        "npz": {side: _stored(out) for side, out in outs.items()},
    }


def _difference(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Of the probabilities, class after class: those of the large case are large."""
    if ours.shape != theirs.shape:
        raise ValueError(f"probabilities of shape {ours.shape} and {theirs.shape}")
    apart = np.zeros(ours.shape[1:], np.float32)
    for one, other in zip(ours, theirs, strict=True):
        np.maximum(apart, np.abs(one.astype(np.float32) - other.astype(np.float32)), out=apart)
    return {"largest": float(apart.max()), "further": float((apart > FAR_APART).mean())}


def dice(first: np.ndarray, second: np.ndarray, classes: dict[str, int]) -> list[float]:
    """Of each class in two label maps; NaN where neither has it."""
    sizes = [((first == value), (second == value)) for value in classes.values()]
    return [2 * (a & b).sum() / total if (total := a.sum() + b.sum()) else np.nan for a, b in sizes]


def _stored(out: Path) -> dict[str, Any]:
    paths = sorted(out.glob("*.npz"))
    dtype = str(np.load(paths[0])["probabilities"].dtype)
    return {"kb_per_case": round(sum(path.stat().st_size for path in paths) / len(paths) / 1000, 1), "dtype": dtype}


def apart(theirs: dict[str, Any], ours: dict[str, Any]) -> float:
    """The largest difference of two summary.json, in the numbers of nnU-Net; infinite where one alone has a number.

    Cases are told apart by the name of the segmentation's file.
    """
    found = [_apart(theirs["foreground_mean"], ours["foreground_mean"])]
    found += [_apart(theirs["mean"][key], ours["mean"][key]) for key in _same(theirs["mean"], ours["mean"])]
    rows = [
        {Path(row["prediction_file"]).name: row["metrics"] for row in one["metric_per_case"]} for one in (theirs, ours)
    ]
    for case in _same(*rows):
        keys = _same(rows[0][case], rows[1][case])
        found += [_apart(rows[0][case][key], rows[1][case][key]) for key in keys]
    return max(found)


def _same(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    if set(first) != set(second):
        raise ValueError(f"{sorted(first)} and {sorted(second)}")
    return list(first)


def _apart(theirs: dict[str, Any], ours: dict[str, Any]) -> float:
    pairs = [(theirs[name], ours[name]) for name in COMPARED]
    # nnU-Net says NaN where segpipe, in valid JSON, says null
    known = [(np.nan if a is None else a, np.nan if b is None else b) for a, b in pairs]
    return max(0.0 if np.isnan(a) and np.isnan(b) else np.inf if np.isnan(a + b) else abs(a - b) for a, b in known)
