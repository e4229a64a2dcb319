"""What the tests of prediction share: logits of a whole case, probabilities and label map on the file's grid."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segpipe.data.labels import Labels
from segpipe.inference.export import LabelMap, Softmax, export, file_shape
from segpipe.inference.regrid import Whole
from segpipe.inference.tiles import Tiles
from segpipe.inference.window import Seen
from segpipe.prepare.preprocess import Grid

CPU = torch.device("cpu")
ENOUGH = 2**30


def whole_logits(
    networks: Sequence[nn.Module],
    image: Tensor,
    patch_size: Sequence[int],
    mirror_axes: Sequence[int],
    step_size: float,
    dtype: torch.dtype,
) -> Tensor:
    """Mean logits of several networks for one case, (heads, Z, Y, X): from one column, all planes at once."""
    flat = 3 - len(patch_size)
    z, y, x = (*((1,) * flat), *patch_size)
    with torch.inference_mode():
        example = torch.zeros(1, len(image), *patch_size)
        n_heads = networks[0](example.to(image.device)).shape[1]
    tiles = Tiles(networks, n_heads, (z, y, x), flat > 0, tuple(mirror_axes), step_size, dtype)
    planes, height, width = image.shape[1:]
    sweep = Seen(tiles, image).column(slice(0, height), slice(0, width))
    return sweep.planes(0, planes, sweep.depth([(0, planes)]))


def on_file_grid(logits: NDArray[np.float32], grid: Grid, labels: Labels) -> NDArray[np.float32]:
    """Probabilities on the file's grid, (heads, Z, Y, X)."""
    probabilities = np.zeros((len(logits), *file_shape(grid)), np.float32)
    export(Whole(torch.from_numpy(logits)), grid, [Softmax(probabilities, grid, labels)], CPU, ENOUGH)
    return probabilities


def label_map(logits: NDArray[np.float32], grid: Grid, labels: Labels) -> NDArray[np.int16]:
    """The label map on the file's grid, (Z, Y, X)."""
    sink = LabelMap(grid, labels)
    export(Whole(torch.from_numpy(logits)), grid, [sink], CPU, ENOUGH)
    return sink.array
