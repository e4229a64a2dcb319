"""Normalisation, resampling and its time: segpipe's functions beside nnU-Net's in one process.

    OMP_NUM_THREADS=1 PYTHONPATH=. PYTHON benchmarks/parity_resampling.py --data FOLDER

PYTHON belongs to an environment with nnunetv2 2.8.1, FOLDER has datasets in nnU-Net's raw layout. Both take turns on
the same arrays; times are CPU seconds: median (lowest-highest). Prints tables, writes results/parity_resampling.json
beside this file and exits with 1 where a difference is above its limit.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nnunetv2.preprocessing.normalization import default_normalization_schemes as schemes
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from segpipe.prepare.normalise import normalise
from segpipe.prepare.resample import resample_image, resample_label, separate_axis
from segpipe.prepare.spacing import resampled_shape

OUT = Path(__file__).with_name("results") / "parity_resampling.json"
LIMIT = 1e-3  # mean absolute difference in standard deviations; probabilities and shares of labels as they are
SCHEMES = {
    "ct": schemes.CTNormalization,
    "zscore": schemes.ZScoreNormalization,
    "none": schemes.NoNormalization,
    "rescale_to_0_1": schemes.RescaleTo01Normalization,
    "rgb_to_0_1": schemes.RGBTo01Normalization,
}
INTENSITIES = {"mean": 20.0, "std": 150.0, "percentile_00_5": -900.0, "percentile_99_5": 1200.0}
# dataset, case, target spacing of the preprocessed case in mm, (Z, Y, X)
CASES = [
    ("Dataset004_Hippocampus", "hippocampus_001", (0.8, 0.8, 0.8)),
    ("Dataset027_ACDC", "patient001_frame01", (8.0, 1.25, 1.25)),
    ("Dataset101_HeadNeckCT", "pt_100", (2.0, 3.2, 3.2)),
]
MAX_LOGITS_VOXELS = 10_000_000
LARGE = ("Dataset101_HeadNeckCT, repeated", (2, 2, 2), (2.0, 5.0, 5.0))

Array = NDArray[Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder of the datasets")
    parser.add_argument("--repeats", type=int, default=5, help="of each timing; the large case takes two")
    arguments = parser.parse_args()
    image, label, spacing_mm = read(arguments.data, *CASES[-1][:2])
    normalisation = list(normalisations(image[0]))
    resampling = [row for case in CASES for row in resamplings(arguments.data, *case, arguments.repeats)]
    name, times, target_mm = LARGE
    large = np.tile(image, (1, *times)), np.tile(label, times)
    resampling += compare(name, *large, spacing_mm, target_mm, min(arguments.repeats, 2))
    differences = [row["mean"] for row in (*normalisation, *resampling)]
    report = {
        "versions": {name: version(name) for name in ("nnunetv2", "numpy", "scipy", "scikit-image")},
        "limit": LIMIT,
        "within_limit": max(differences) <= LIMIT,
        "normalisation": normalisation,
        "resampling": resampling,
    }
    OUT.write_text(json.dumps(report, indent=1) + "\n")
    print(table(normalisation), table(resampling), sep="\n\n")
    sys.exit(0 if report["within_limit"] else 1)


def table(rows: list[dict[str, Any]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[f"{value:.2g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read(data: Path, dataset: str, case: str) -> tuple[Array, Array, tuple[float, ...]]:
    """Image (1, Z, Y, X) float32, label (Z, Y, X) int16, spacing in mm."""
    image = nibabel.load(data / dataset / f"imagesTr/{case}_0000.nii.gz")
    label = nibabel.load(data / dataset / f"labelsTr/{case}.nii.gz")
    arrays = [np.ascontiguousarray(np.asarray(one.dataobj).T) for one in (image, label)]
    return (
        arrays[0][None].astype(np.float32),
        arrays[1].astype(np.int16),
        tuple(map(float, image.header.get_zooms()[::-1])),
    )


def normalisations(channel: Array) -> Iterator[dict[str, Any]]:
    """Every scheme on a real CT; z-score inside a mask as well, RGB on what is clipped to 8 bits."""
    for scheme, theirs in SCHEMES.items():
        for masked in (False, True) if scheme == "zscore" else (False,):
            image = channel.clip(0, 255) if scheme == "rgb_to_0_1" else channel
            inside = image > -500
            expected = theirs(masked, INTENSITIES).run(image.copy(), np.where(inside, 0, -1))
            found = normalise(scheme, image, inside if masked else None, INTENSITIES)
            yield {"scheme": scheme, "inside a mask": masked, **difference(found, expected)}


def difference(found: Array, expected: Array) -> dict[str, float]:
    """Mean and largest, in standard deviations."""
    absolute = np.abs(found.astype(np.float64) - expected) / expected.std(dtype=np.float64)
    return {"mean": float(absolute.mean()), "max": float(absolute.max())}


def resamplings(
    data: Path, dataset: str, case: str, target_mm: tuple[float, ...], repeats: int
) -> Iterator[dict[str, Any]]:
    image, label, spacing_mm = read(data, dataset, case)
    return compare(f"{dataset} {case}", image, label, spacing_mm, target_mm, repeats)


def compare(
    name: str, image: Array, label: Array, spacing_mm: tuple[float, ...], target_mm: tuple[float, ...], repeats: int
) -> Iterator[dict[str, Any]]:
    """Rows for the image, the label, and for logits on the way back and the probabilities made of them."""
    shape = resampled_shape(label.shape, spacing_mm, target_mm)
    there = (shape, spacing_mm, target_mm)
    yield row(name, "image", image, there, 3, repeats)
    yield row(name, "label", label[None], there, 1, repeats)
    if label.size > MAX_LOGITS_VOXELS:  # minutes, and many GB
        return
    logits = resample_image(plausible_logits(label), shape, separate_axis(spacing_mm, target_mm))
    yield row(name, "logits", logits, (label.shape, target_mm, spacing_mm), 1, repeats)


def plausible_logits(label: Array) -> Array:
    """(classes, Z, Y, X): high where the class is, smooth at its border."""
    masks = [(label == value).astype(np.float32) for value in range(label.max() + 1)]
    return np.stack([20 * gaussian_filter(mask, 1) - 10 for mask in masks])


def row(name: str, kind: str, array: Array, way: tuple[Any, Any, Any], order: int, repeats: int) -> dict[str, Any]:
    """way : shape of the result, spacing before and after"""
    shape, from_mm, to_mm = way
    separate = separate_axis(from_mm, to_mm)

    def theirs() -> Array:
        is_label = kind == "label"
        return resample_data_or_seg_to_shape(array, shape, from_mm, to_mm, is_label, order, 0, force_separate_z=None)

    def ours() -> Array:
        return (
            resample_label(array[0], shape, separate)[None]
            if kind == "label"
            else resample_image(array, shape, separate, order)
        )

    expected, found, seconds = theirs(), ours(), alternating({"nnunet": theirs, "segpipe": ours}, repeats)
    if kind == "label":
        differs: Mapping[str, float] = {"mean": float((expected != found).mean()), "max": 0.0}
    elif kind == "logits":
        differs = probabilities(found, expected)
    else:
        differs = difference(found, expected)
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    spans = {f"{side} s": f"{medians[side]:.3f} ({min(t):.3f}-{max(t):.3f})" for side, t in seconds.items()}
    sizes = {"from": " x ".join(map(str, array.shape)), "to": " x ".join(map(str, shape))}
    return {
        "case": name,
        "of": kind,
        **sizes,
        "coarse axis": separate,
        **differs,
        **spans,
        "times": medians["nnunet"] / medians["segpipe"],
    }


def probabilities(found: Array, expected: Array) -> dict[str, float]:
    """Differences of the softmax."""
    powers = [np.exp(logits, out=logits) for logits in (found, expected)]
    absolute = np.abs(powers[0] / powers[0].sum(0) - powers[1] / powers[1].sum(0))
    return {"mean": float(absolute.mean(dtype=np.float64)), "max": float(absolute.max())}


def alternating(sides: Mapping[str, Callable[[], Array]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each call, the sides taking turns."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, call in sides.items():
            start = time.process_time()
            call()
            seconds[side].append(time.process_time() - start)
    return seconds


if __name__ == "__main__":
    main()
