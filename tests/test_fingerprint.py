"""The fingerprint: cropping, and statistics that weigh each case the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes
from tiny import params
from volumes import CHECK, nifti, nnunet_dataset, numbered

from segpipe import digest
from segpipe.data import check
from segpipe.data.cases import Cases
from segpipe.prepare import fingerprint
from segpipe.prepare.fingerprint import Intensities, channel_statistics
from segpipe.prepare.nonzero import bounding_box, fill_holes, nonzero

RUNTIME = params().runtime


# cropping


def hollow_box() -> NDArray[np.float32]:
    """(1, Z, Y, X): a shell of ones with an empty inside, one voxel thick."""
    image = np.zeros((1, 9, 10, 11), np.float32)
    image[0, 2:7, 3:9, 4:10] = 1
    image[0, 3:6, 4:8, 5:9] = 0
    return image


def test_holes_belong_to_the_mask() -> None:
    mask = fill_holes(nonzero(hollow_box()))
    assert mask[2:7, 3:9, 4:10].all()
    assert mask.sum() == 5 * 6 * 6
    assert mask[4, 5, 6]  # in the hole
    assert not mask[1].any()


def test_a_cave_that_is_open_to_the_outside_does_not() -> None:
    image = hollow_box()
    image[0, 2, 5, 6] = 0
    assert not fill_holes(nonzero(image))[4, 5, 6]


def test_holes_are_closed_in_three_dimensions() -> None:
    """A tunnel along one axis is a hole of every slice, but no hole of the volume."""
    image = np.ones((1, 5, 5, 5), np.float32)
    image[0, :, 2, 2] = 0
    assert not fill_holes(nonzero(image))[:, 2, 2].any()
    assert all(binary_fill_holes(slice_).all() for slice_ in image[0] != 0)


@pytest.mark.parametrize("few", [0, 2])
@pytest.mark.parametrize("share", [0, 0.05, 0.3, 0.5, 0.7, 1])
def test_holes_are_those_that_scipy_fills(share: float, few: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether few voxels are outside or many."""
    monkeypatch.setattr("segpipe.prepare.nonzero.FEW", few)
    mask = np.random.default_rng(1).random((12, 13, 14)) >= share
    for turned in (mask, mask.transpose(2, 0, 1), mask.T, np.asfortranarray(mask), mask[1:-1, ::2]):
        np.testing.assert_array_equal(fill_holes(turned), binary_fill_holes(turned))


def test_holes_reach_no_further_than_the_bounding_box() -> None:
    mask = nonzero(hollow_box())
    assert bounding_box(mask) == bounding_box(fill_holes(mask))
    box = bounding_box(mask)
    np.testing.assert_array_equal(fill_holes(mask[box]), fill_holes(mask)[box])


def test_any_channel_counts() -> None:
    image = np.zeros((2, 4, 5, 6), np.float32)
    image[0, 1, 1, 1], image[1, 3, 2, 4] = -5, 1e-30
    mask = nonzero(image)
    assert np.argwhere(mask).tolist() == [[1, 1, 1], [3, 2, 4]]
    assert bounding_box(mask) == (slice(1, 4), slice(1, 3), slice(1, 5))


def test_an_empty_image_is_not_cropped() -> None:
    assert bounding_box(np.zeros((4, 5, 6), bool)) == (slice(0, 4), slice(0, 5), slice(0, 6))


# weighted statistics


def naive(cases: list[NDArray[np.float32]], n_draws: int = 400_000) -> dict[str, float]:
    """nnU-Net's definition: draw the same number from each case, with replacement, and pool the draws."""
    rng = np.random.default_rng(0)
    pooled = np.concatenate([rng.choice(case, n_draws) for case in cases]).astype(np.float64)
    low, median, high = np.percentile(pooled, [0.5, 50, 99.5])
    quantiles = {"percentile_00_5": low, "median": median, "percentile_99_5": high}
    return {"mean": pooled.mean(), "std": pooled.std(), "min": pooled.min(), "max": pooled.max(), **quantiles}


def weighted(cases: list[NDArray[np.float32]]) -> dict[str, float]:
    return channel_statistics([summed(case) for case in cases])


def summed(values: NDArray[np.float32], n_kept: int = 1_000_000, offset: float = 0.5) -> Intensities:
    return Intensities.of(values.copy(), n_kept, offset)


def foreground(seed: int, n: int, mean: float, std: float) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(mean, std, n).astype(np.float32)


@pytest.mark.parametrize(
    "cases",
    [
        [foreground(1, 5000, 100, 10)],
        [foreground(1, 20_000, 100, 10), foreground(2, 500, 200, 30), foreground(3, 3000, -50, 5)],
        [foreground(1, 50, 0, 3), foreground(2, 30_000, 2, 3)],
        [np.repeat(np.float32([1, 2, 3]), 1000), np.float32([7]), np.float32([2, 2.5])],
    ],
)
def test_statistics_are_what_an_equal_draw_per_case_estimates(cases: list[NDArray[np.float32]]) -> None:
    found, expected = weighted(cases), naive(cases)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=0.02 * expected["std"]), name


def test_weights_matter() -> None:
    cases = [foreground(1, 20_000, 100, 10), foreground(2, 500, 200, 10)]
    assert weighted(cases)["mean"] == pytest.approx(150, abs=1)
    assert np.concatenate(cases).mean() == pytest.approx(102, abs=1)


def test_one_case_has_the_plain_statistics() -> None:
    values = foreground(1, 10_001, 100, 10)
    found = weighted([values])
    assert found["mean"] == pytest.approx(values.astype(np.float64).mean(), rel=1e-12)
    assert found["std"] == pytest.approx(values.astype(np.float64).std(), rel=1e-12)
    assert found["median"] == np.median(values)


def test_deviation_is_exact_far_from_zero() -> None:
    values = (foreground(1, 100_000, 0, 10) + 1e6).astype(np.float32)
    assert weighted([values])["std"] == pytest.approx(values.astype(np.float64).std(), rel=1e-9)


def test_without_foreground_all_is_zero() -> None:
    assert set(channel_statistics([]).values()) == {0.0}


def error(found: dict[str, float], exact: dict[str, float]) -> float:
    """The largest of a percentile, in standard deviations."""
    return max(abs(found[name] - exact[name]) for name in fingerprint.PERCENTILES) / exact["std"]


def test_kept_ranks_stand_for_all_values() -> None:
    values = [foreground(seed, 200_000, 10 * seed, 50) for seed in range(4)]
    values[0][:1000] += 30_000  # metal
    kept = [summed(case, 50_000, 0.3 * index % 1) for index, case in enumerate(values)]
    found, exact = channel_statistics(kept), weighted(values)
    assert [len(case.sorted) for case in kept] == [50_000] * 4
    assert {key: found[key] for key in ("mean", "std", "min", "max")} == {
        key: exact[key] for key in ("mean", "std", "min", "max")
    }
    assert 0 < error(found, exact) < 1e-3


def test_alike_cases_with_few_ranks_each_complement_each_other() -> None:
    values = foreground(1, 100_000, 0, 1)
    offsets = (np.arange(50) * fingerprint.GOLDEN_RATIO + 0.5) % 1
    spread = channel_statistics([summed(values, 400, offset) for offset in offsets])
    alike = channel_statistics([summed(values, 400)] * 50)
    exact = weighted([values])
    assert error(spread, exact) < 0.01 < error(alike, exact)


# the whole file


def dataset(folder: Path, images: list[NDArray[Any]], labels: list[NDArray[Any]], **classes: int) -> Cases:
    """Two channels: the images, and the images plus 1000."""
    names = {"background": 0, "liver": 1, "kidney": 2, **classes}
    root = nnunet_dataset(folder / "Dataset001_Small", n_train=0, n_test=0, channels=["T1", "T2"], labels=names)
    for case, image, label in zip("abcdef", images, labels, strict=False):
        for channel in range(2):
            nifti(root / f"imagesTr/{case}_000{channel}.nii.gz", image + 1000 * channel * (image != 0), (1, 2, 3))
        nifti(root / f"labelsTr/{case}.nii.gz", label, (1, 2, 3))
    description = digest.read_json(root / "dataset.json") | {"numTraining": len(images)}
    digest.write_json(root / "dataset.json", description | {"channel_names": numbered(["T1", "T2"])})
    check.check(root, folder / "cases.json", CHECK, 1)
    return Cases.read(folder / "cases.json", root)


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    """Case a: full; b: half of it is empty; c: no foreground."""
    rng = np.random.default_rng(0)
    images = [rng.integers(50, 150, (8, 6, 4)).astype(np.float32) for _ in "abc"]
    labels = [np.zeros((8, 6, 4), np.uint8) for _ in "abc"]
    images[1][4:] = 0
    labels[0][2:7, 1:5] = 1
    labels[1][1:3, 1:3, 2] = 2
    cases = dataset(tmp_path, images, labels)
    fingerprint.extract(cases, tmp_path / "fingerprint.json", RUNTIME)
    found: dict[str, Any] = digest.read_json(tmp_path / "fingerprint.json")
    inside = [image[label > 0] for image, label in zip(images, labels, strict=True)][:2]
    found["expected"] = {"0": weighted(inside), "1": weighted([values + 1000 for values in inside])}
    return found


def test_spacings_and_shapes_after_cropping(content: dict[str, Any]) -> None:
    assert content["cases"] == {
        "a": {"spacing_mm": [3, 2, 1], "shape_after_crop": [4, 6, 8]},
        "b": {"spacing_mm": [3, 2, 1], "shape_after_crop": [4, 6, 4]},
        "c": {"spacing_mm": [3, 2, 1], "shape_after_crop": [4, 6, 8]},
    }
    assert content["median_relative_size_after_cropping"] == 1


def test_intensities_are_of_the_foreground_of_cases_that_have_any(content: dict[str, Any]) -> None:
    assert content["channels"].keys() == {"0", "1"}
    for channel, expected in content["expected"].items():
        assert content["channels"][channel] == pytest.approx(expected)


def test_a_dataset_without_foreground(tmp_path: Path) -> None:
    cases = dataset(tmp_path, [np.ones((5, 4, 3), np.float32)] * 2, [np.zeros((5, 4, 3), np.uint8)] * 2)
    fingerprint.extract(cases, tmp_path / "fingerprint.json", RUNTIME)
    assert set(digest.read_json(tmp_path / "fingerprint.json")["channels"]["1"].values()) == {0.0}


def test_the_ignore_label_is_no_foreground(tmp_path: Path) -> None:
    """nnU-Net's documentation says so; its code counts whatever is above zero."""
    image = np.full((8, 6, 4), 100, np.float32)
    label = np.zeros(image.shape, np.uint8)
    label[:2], label[2:5], label[5:] = 1, 2, 3
    image[2:5], image[5:] = 200, 9000
    cases = dataset(tmp_path, [image], [label], ignore=3)
    fingerprint.extract(cases, tmp_path / "fingerprint.json", RUNTIME)
    found = digest.read_json(tmp_path / "fingerprint.json")["channels"]["0"]
    assert (found["min"], found["max"]) == (100, 200)


def test_large_cases_keep_a_bounded_number_of_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).permutation(np.arange(1, 6001, dtype=np.float32)).reshape(30, 20, 10)
    cases = dataset(tmp_path, [values, values + 1], [np.ones(values.shape, np.uint8)] * 2)
    kept = fingerprint.analyse(cases, "a", 0.5, 500).channels
    assert [len(channel.sorted) for channel in kept] == [500, 500]
    np.testing.assert_array_equal(kept[0].sorted, np.arange(7, 6001, 12))  # the middle of each twelve
    monkeypatch.setattr(fingerprint, "KEPT_VALUES", 2000)  # 500 for each of two cases and two channels
    sizes = []
    monkeypatch.setattr(fingerprint, "_percentiles", lambda cases: sizes.extend(map(len, cases)) or {})
    fingerprint.extract(cases, tmp_path / "fingerprint.json", RUNTIME)
    assert sizes == [500] * 4
    assert digest.read_json(tmp_path / "fingerprint.json")["channels"]["0"]["max"] == 6001


def test_the_ranks_that_alike_cases_keep_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(1, 1001, dtype=np.float32).reshape(10, 10, 10)
    cases = dataset(tmp_path, [values] * 6, [np.ones(values.shape, np.uint8)] * 6)
    monkeypatch.setattr(fingerprint, "KEPT_VALUES", 120)  # 10 for each: the middle ones would end at 951
    fingerprint.extract(cases, tmp_path / "fingerprint.json", RUNTIME)
    found = digest.read_json(tmp_path / "fingerprint.json")["channels"]["0"]
    assert found["percentile_99_5"] == pytest.approx(995, abs=10)
    assert found["median"] == pytest.approx(500, abs=10)


def test_threads_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images = [rng.normal(100, 20, (9, 8, 7)).astype(np.float32) for _ in "abcde"]
    cases = dataset(tmp_path, images, [(image > 90).astype(np.uint8) for image in images])
    monkeypatch.setattr(fingerprint, "KEPT_VALUES", 1000)
    found = []
    for threads in (1, 4):
        fingerprint.extract(cases, tmp_path / "fingerprint.json", RUNTIME.model_copy(update={"threads": threads}))
        found.append((tmp_path / "fingerprint.json").read_bytes())
    assert found[0] == found[1]
