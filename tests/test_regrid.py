"""From the network's grid to the file's in blocks: all of them, equal to the whole, within the buffer."""

import weakref
from typing import ClassVar

import numpy as np
import pytest
import torch
from predicted import CPU, label_map, on_file_grid
from test_export import EXPORTS, grid_of, logits_of
from tiny import labels_of, wave

from segpipe.inference import export, regrid
from segpipe.inference.export import LabelMap, Softmax, file_shape
from segpipe.inference.regrid import Whole, blocks, pieces
from segpipe.prepare.preprocess import Grid
from segpipe.prepare.resample import resample_image

THREE = labels_of({"background": 0, "one": 1, "two": 2})
REGIONS = labels_of({"background": 0, "whole": [1, 2, 3], "active": 3, "core": [2, 3]}, [1, 3, 2])
SAME_VALUE = labels_of({"background": 0, "whole": [1, 2], "other": [2], "third": [1]}, [1, 2, 1])


def gathered(source, grid, buffer_bytes):
    """The logits of all blocks, where each voxel has to come exactly once."""
    found = np.full((source.shape[0], *grid.cropped_shape), np.nan, np.float32)
    for ready in blocks(source, grid, CPU, buffer_bytes):
        for block in ready:
            assert np.isnan(found[:, *block.where]).all()
            found[:, *block.where] = block.logits
    return found


@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("edge", [3, 5, 64])
@pytest.mark.parametrize("buffer_bytes", [1, 3 * 4 * 8 * 5 * 5, 2**30])
def test_blocks_are_the_whole_in_parts(monkeypatch, name, edge, buffer_bytes):
    monkeypatch.setattr(regrid, "BLOCK", {"cpu": edge})
    grid = grid_of(*EXPORTS[name])
    logits = logits_of(grid)
    expected = resample_image(logits, grid.cropped_shape, grid.separate, order=1)
    assert np.allclose(gathered(Whole(torch.from_numpy(logits)), grid, buffer_bytes), expected, atol=1e-5)


class Recorded(Whole):
    """Notes the largest buffer that is asked for; of any column six planes are needed."""

    largest = 0

    def depth(self, needs):
        return 6

    def column(self, rows, columns):
        return Recorded(self.logits[:, :, rows, columns])

    def planes(self, start, stop, depth):
        Recorded.largest = max(Recorded.largest, 4 * depth * self.logits[:, 0].numel())
        return super().planes(start, stop, depth)


@pytest.mark.parametrize("buffer_bytes", [4 * 2 * 6 * 20 * 20, 4 * 2 * 6 * 41 * 15, 4 * 2 * 6 * 50 * 60])
def test_the_buffer_is_kept_to(monkeypatch, buffer_bytes):
    monkeypatch.setattr(regrid, "BLOCK", {"cpu": 4})
    monkeypatch.setattr(Recorded, "largest", 0)
    grid = Grid((20, 60, 90), ((0, 20), (0, 60), (0, 90)), (1.0,) * 3, (1.0, 1.2, 1.5), (0, 1, 2))
    gathered(Recorded(wave(2, 20, 50, 60)), grid, buffer_bytes)
    assert buffer_bytes / 3 < Recorded.largest <= buffer_bytes


def test_a_buffer_that_nothing_fits_into_is_exceeded_by_as_little_as_possible(monkeypatch):
    monkeypatch.setattr(regrid, "BLOCK", {"cpu": 4})
    monkeypatch.setattr(Recorded, "largest", 0)
    grid = Grid((8, 8, 8), ((0, 8),) * 3, (1.0,) * 3, (1.0,) * 3, (0, 1, 2))
    gathered(Recorded(wave(2, 8, 8, 8)), grid, 1)
    assert Recorded.largest == 4 * 2 * 6 * 4 * 4


class Watched(Recorded):
    """Counts how many columns have planes in memory when another one begins to need some."""

    alive: ClassVar[list[weakref.ref[torch.Tensor]]] = []
    left: ClassVar[list[int]] = []

    def column(self, rows, columns):
        return Watched(self.logits[:, :, rows, columns])

    def planes(self, start, stop, depth):
        if start == 0:
            Watched.left.append(sum(one() is not None for one in Watched.alive))
        found = super().planes(start, stop, depth).clone()
        Watched.alive.append(weakref.ref(found))
        return found


def test_a_column_is_forgotten_before_the_next_one_begins(monkeypatch):
    monkeypatch.setattr(regrid, "BLOCK", {"cpu": 8})
    monkeypatch.setattr(Watched, "alive", [])
    monkeypatch.setattr(Watched, "left", [])
    grid = Grid((8, 32, 32), ((0, 8), (0, 32), (0, 32)), (1.0,) * 3, (1.0,) * 3, (0, 1, 2))
    export.export(Watched(wave(3, 8, 32, 32)), grid, [LabelMap(grid, THREE)], CPU, 4 * 3 * 6 * 16 * 16)
    assert Watched.left == [0, 0, 0, 0]


@pytest.mark.parametrize(("n_in", "n_out"), [(7, 7), (5, 13), (13, 5), (1, 9), (9, 1), (32, 64)])
def test_pieces_cover_an_axis_evenly(n_in, n_out):
    for edge in (1, 4, 32):
        found = pieces(n_in, n_out, False, edge, CPU)
        assert [place for piece in found for place in range(piece.out.start, piece.out.stop)] == [*range(n_out)]
        lengths = [piece.out.stop - piece.out.start for piece in found]
        assert max(lengths) - min(lengths) <= 1
        assert max(lengths) < 1.5 * edge + 1
        assert all(piece.matrix is None for piece in found) == (n_in == n_out)


@pytest.mark.parametrize("labels", [THREE, REGIONS, SAME_VALUE])
@pytest.mark.parametrize("edge", [4, 16])
def test_what_is_decided_without_interpolation_is_what_interpolation_decides(monkeypatch, labels, edge):
    """Smooth logits, with wide areas of one class: most blocks are settled by their corners."""
    monkeypatch.setattr(regrid, "BLOCK", {"cpu": edge})
    logits = np.stack([np.roll(wave(1, 20, 24, 28, seed=0.05).numpy()[0], 6 * head, axis=1) for head in range(3)])
    grid = Grid((50, 50, 50), ((2, 50), (0, 47), (0, 50)), (1.0,) * 3, (2.4, 1.95, 1.8), (0, 1, 2))
    resampled = []
    monkeypatch.setattr(regrid.Block, "is_resampled", property(lambda self: resampled.append(1) or SHORTCUT(self)))
    quick = label_map(logits, grid, labels)
    monkeypatch.setattr(regrid.Block, "is_resampled", property(lambda self: False))
    assert np.array_equal(quick, label_map(logits, grid, labels))
    assert len(resampled) > 1
    assert len(np.unique(quick)) > 2


SHORTCUT = regrid.Block.is_resampled.fget


def test_members_one_behind_the_other_are_averaged():
    grid = grid_of(*EXPORTS["isotropic"])
    each = [logits_of(grid), logits_of(grid)[::-1].copy(), -logits_of(grid)]
    mean = sum(each) / 3
    together = Whole(torch.from_numpy(np.concatenate(each)))
    found, softmax = LabelMap(grid, THREE, 3), np.zeros((3, *file_shape(grid)), np.float32)
    export.export(together, grid, [found, Softmax(softmax, grid, THREE, members=3)], CPU, 2**30)
    assert np.allclose(softmax, on_file_grid(mean, grid, THREE), atol=1e-6)
    assert np.array_equal(found.array, label_map(mean, grid, THREE))


def test_the_segmentation_of_logits_is_that_of_their_probabilities():
    for name in EXPORTS:
        grid = grid_of(*EXPORTS[name])
        for labels in (THREE, REGIONS):
            probabilities = on_file_grid(logits_of(grid), grid, labels)
            assert np.array_equal(label_map(logits_of(grid), grid, labels), export.segmentation(probabilities, labels))


def test_the_logits_of_a_block_are_gone_when_it_is_done(monkeypatch):
    """They lie on the file's grid, outside of what the buffer takes."""
    grid = grid_of(*EXPORTS["isotropic"])
    blocks_taken = []

    class Looking(LabelMap):
        def take(self, block):
            blocks_taken.append(weakref.ref(block.logits))
            super().take(block)

    monkeypatch.setattr(regrid, "BLOCK", {"cpu": 4})
    kept = []
    monkeypatch.setattr(
        regrid.Block, "forget", lambda self, forget=regrid.Block.forget: kept.append(self) or forget(self)
    )
    export.export(Whole(torch.from_numpy(logits_of(grid))), grid, [Looking(grid, THREE)], CPU, 2**30)
    assert len(kept) == len(blocks_taken) >= 8
    assert not any(logits() is not None for logits in blocks_taken)


def test_blocks_of_many_classes_are_smaller():
    assert regrid.block_edge(2, "cpu") == regrid.block_edge(500, "cpu") == 32
    assert regrid.block_edge(2, "cuda") == 256
    assert 4 * regrid.block_edge(60, "cuda") ** 3 * 60 < 2**29
    assert regrid.block_edge(10**6, "cuda") == 32


def test_torchs_threads_are_as_many_after_as_before():
    grid = grid_of(*EXPORTS["isotropic"])
    before, seen = torch.get_num_threads(), []

    class Looking(LabelMap):
        def take(self, block):
            seen.append(torch.get_num_threads())
            super().take(block)

    torch.set_num_threads(3)
    try:
        export.export(Whole(torch.from_numpy(logits_of(grid))), grid, [Looking(grid, THREE)], CPU, 2**30)
        assert torch.get_num_threads() == 3
        assert set(seen) == {1}
    finally:
        torch.set_num_threads(before)
