"""The mean of saved softmax files and its label map: what numpy says of the whole arrays, from one class at a time."""

import tracemalloc

import numpy as np
import pytest
from tiny import FOUR, labels_of

from segpipe.errors import SegpipeError
from segpipe.inference import mean_softmax, softmax_file

SHAPE = (5, 6, 7)
REGIONS = labels_of({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}, [1, 2, 3])


def saved(folder, arrays, dtype="float32"):
    paths = [folder / f"{index}.npz" for index in range(len(arrays))]
    for path, array in zip(paths, arrays, strict=True):
        softmax_file.save(path, array, dtype)
    return paths


def coarse(seed, n_classes, shape=SHAPE):
    """Probabilities of few different values: many voxels have several most probable classes, or exactly one half."""
    return np.random.default_rng(seed).integers(0, 5, (n_classes, *shape)).astype(np.float32) / 4


@pytest.mark.parametrize("n_members", [1, 2, 3])
def test_of_equal_classes_the_first_wins_as_in_numpy(tmp_path, n_members):
    arrays = [coarse(seed, 4) for seed in range(n_members)]
    mean = np.sum(arrays, axis=0, dtype=np.float32) / np.float32(n_members)
    assert (np.sort(mean, 0)[-1] == np.sort(mean, 0)[-2]).any()
    result = mean_softmax.label_map(saved(tmp_path, arrays), [1] * n_members, FOUR)
    assert result.dtype == np.int16
    assert np.array_equal(result, mean.argmax(0))


def test_regions_above_one_half_are_painted_in_their_order(tmp_path):
    arrays = [coarse(seed, 3) for seed in range(2)]
    mean = (arrays[0] + arrays[1]) / 2
    assert (mean == 0.5).any()
    expected = np.zeros(SHAPE, int)
    for region, value in zip(mean, (1, 2, 3), strict=True):
        expected[region > 0.5] = value
    assert np.array_equal(mean_softmax.label_map(saved(tmp_path, arrays), [1, 1], REGIONS), expected)


def test_the_mean_of_half_precision_is_single(tmp_path):
    arrays = [np.full((2, 1, 1, 1), value) for value in (0.1, 0.3337, 0.9)]
    for mean in mean_softmax.classes(saved(tmp_path, arrays, "float16"), [1, 1, 1]):
        assert mean.dtype == np.float32
        exact = np.mean([array.astype(np.float16).astype(np.float64) for array in arrays])
        assert np.allclose(mean, exact, atol=1e-7)


def test_precisions_and_weights_are_mixed(tmp_path):
    arrays = [coarse(seed, 2).astype(dtype) for seed, dtype in enumerate(("float16", "float32", "float64"))]
    for index, array in enumerate(arrays):
        np.savez(tmp_path / f"{index}.npz", probabilities=array)
    mean = list(mean_softmax.classes([tmp_path / f"{index}.npz" for index in range(3)], [1, 2, 0.5]))
    assert all(one.dtype == np.float32 for one in mean)
    expected = (arrays[0] + 2 * arrays[1] + 0.5 * arrays[2]) / 3.5
    assert np.allclose(mean, expected, atol=1e-6)


def test_members_on_other_grids_are_all_named(tmp_path):
    arrays = [coarse(0, 4), coarse(0, 3), coarse(0, 4), coarse(0, 4, (5, 7, 6))]
    with pytest.raises(SegpipeError, match=r"(?s)2 problems.*1\.npz.*3\.npz") as error:
        list(mean_softmax.classes(saved(tmp_path, arrays), [1] * 4))
    assert "2.npz" not in str(error.value)


def test_another_number_of_classes_than_the_labels_have_is_refused(tmp_path):
    with pytest.raises(SegpipeError, match=r"found:    3\n  expected: 4: background, one, two, three"):
        mean_softmax.label_map(saved(tmp_path, [coarse(0, 3)]), [1], FOUR)


def test_memory_does_not_grow_with_the_classes(tmp_path):
    peaks, shape = {}, (16, 128, 128)
    for n_classes in (4, 24):
        labels = labels_of({"background": 0, **{f"class {n}": n for n in range(1, n_classes)}})
        paths = saved(tmp_path, [np.zeros((n_classes, *shape), np.float32)] * 2)
        tracemalloc.start()
        mean_softmax.label_map(paths, [1, 1], labels)
        peaks[n_classes] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[24] < 1.1 * peaks[4]
    assert peaks[24] < mean_softmax.VOXEL_BYTES * np.prod(shape) + 2**21


def test_as_many_cases_at_once_as_memory_holds(monkeypatch):
    shapes = [(3, 10, 10, 10), (100, 100, 100), (4, 50, 50, 50)]
    monkeypatch.setattr(mean_softmax.machine, "available_bytes", lambda: 2 * 3 * mean_softmax.VOXEL_BYTES * 10**6)
    assert mean_softmax.at_once(shapes, 8) == 3
    assert mean_softmax.at_once(shapes, 2) == 2
    assert mean_softmax.at_once(shapes, 8, n_maps=10) == 1
