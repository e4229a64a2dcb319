"""Segment a NIfTI image with what `segpipe export-onnx` wrote: numpy, scipy, nibabel and onnxruntime, without segpipe.

    python predict_onnx.py EXPORTED CASE_0000.nii.gz [CASE_0001.nii.gz ...] -o CASE.nii.gz

It follows preprocessing.json step by step and is meant to be read. All classes of a volume are in memory at once.
"""

import argparse
import itertools
import json
import math
from pathlib import Path

import nibabel
import numpy as np
import onnxruntime
from nibabel import orientations
from scipy import ndimage, special

RAS = np.array([[0, 1], [1, 1], [2, 1]])


def read(paths, rules):
    """All channels, (C, Z, Y, X) float32, their spacing (Z, Y, X) in mm, and the first file."""
    files = [nibabel.load(path) for path in paths]
    is_2d = files[0].ndim == 2
    turned = files if is_2d or rules["orientation"] != "RAS" else [nibabel.as_closest_canonical(file) for file in files]
    channels = [np.asarray(file.dataobj, np.float32) for file in turned]
    zooms = [float(edge) for edge in turned[0].header.get_zooms()]
    if is_2d:
        channels = [channel[..., None] for channel in channels]
        zooms.append(max(zooms) * rules["slice_thickness_2d"])
    return np.stack([channel.T for channel in channels]), zooms[::-1], files[0]


def write(path, segmentation, like, rules):
    """A (Z, Y, X) map of the training's values, with the geometry of the image and the values of the files."""
    array = np.array(rules["labels"]["values_in_files"], np.uint16)[segmentation].T
    if like.ndim == 2:
        array = array[..., 0]
    elif rules["image"]["orientation"] == "RAS":
        back = orientations.ornt_transform(RAS, orientations.io_orientation(like.affine))
        array = orientations.apply_orientation(array, back)
    nibabel.save(nibabel.Nifti1Image(array, like.affine, like.header, dtype=np.uint16), path)


# ---- from the file's grid to the network's ---------------------------------------------------------------------------


def separate_axis(spacing, target, rules):
    """The axis that is much coarser than the others, in the first of both spacings where one is."""
    for edges in (np.array(spacing), np.array(target)):
        if edges.max() / edges.min() > rules["separate_axis"]["spacing_ratio_above"]:
            coarse = np.flatnonzero(edges == edges.max())
            return int(coarse[0]) if len(coarse) == 1 else None
    return None


def nearest(n_in, n_out):
    """For each place the one whose centre is nearest."""
    centres = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
    return np.clip(np.floor(centres + 0.5), 0, n_in - 1).astype(int)


def resample(array, shape, separate, order):
    """One (Z, Y, X) array: a spline, but the nearest plane along a separate axis."""
    within = [old if axis == separate else new for axis, (old, new) in enumerate(zip(array.shape, shape, strict=True))]
    if list(array.shape) != within:
        zooms = [new / old for old, new in zip(array.shape, within, strict=True)]
        array = ndimage.zoom(array, zooms, order=order, mode="nearest", grid_mode=True)
    return array if separate is None else np.take(array, nearest(array.shape[separate], shape[separate]), separate)


def resample_image(channel, shape, separate, rules):
    """A channel, within the range that it had; along a separate axis within that of the slice."""
    result = resample(channel, shape, separate, rules["order"])
    if not rules["clip_to_range"]:
        return result
    within = tuple(axis for axis in range(3) if axis != separate)
    limits = [
        resample(np.broadcast_to(limit(within, keepdims=True), channel.shape), shape, separate, 0)
        for limit in (channel.min, channel.max)
    ]
    return np.clip(result, *limits)


def resample_segmentation(segmentation, shape, separate, rules):
    """Each label's mask; the largest share wins, of equal ones the label of the nearest voxel."""
    winner = closest = segmentation[np.ix_(*map(nearest, segmentation.shape, shape))]
    winner, best = winner.copy(), np.full(shape, -1, np.float32)
    for value in np.unique(segmentation):
        share = resample((segmentation == value).astype(np.float32), shape, separate, rules["order"])
        better = (share > best + rules["tie"]) | ((share > best - rules["tie"]) & (closest == value))
        winner[better] = value
        best = np.maximum(best, share)
    return winner


def normalise(channel, mask, how):
    """A (Z, Y, X) channel; mask : where it is not empty."""
    scheme = how["scheme"]
    if scheme == "zscore":
        where = mask if how["within_mask"] else np.ones_like(mask)
        values = channel[where].astype(np.float64)
        if not values.size:
            return channel
        scaled = (channel - values.mean()) / max(values.std(), how["least_divisor"])
        return np.where(where, scaled, channel).astype(np.float32)
    if scheme == "ct":
        return (np.clip(channel, *how["clip"]) - how["mean"]) / max(how["std"], how["least_divisor"])
    if scheme == "rescale_to_0_1":
        channel = channel - channel.min()
        return channel / max(channel.max(), how["least_divisor"])
    return channel / how["divisor"] if scheme == "rgb_to_0_1" else channel


class Grid:
    """Both grids of a case, in the configuration's order of axes."""

    def __init__(self, image, spacing, configuration, rules):
        forward = configuration["transpose_forward"]
        inside = np.argwhere((image != 0).any(0))
        low, high = (inside.min(0), inside.max(0) + 1) if len(inside) else ((0, 0, 0), image.shape[1:])
        self.box = tuple(map(slice, low, high))
        self.forward, self.back = forward, configuration["transpose_backward"]
        self.spacing = [spacing[axis] for axis in forward]
        self.target = [target or old for target, old in zip(configuration["spacing_mm"], self.spacing, strict=True)]
        self.cropped = [int(high[axis] - low[axis]) for axis in forward]
        sizes = zip(self.cropped, self.spacing, self.target, strict=True)
        self.shape = [max(1, round(old / new * n)) for n, old, new in sizes]
        self.separate = separate_axis(self.spacing, self.target, rules)
        self.separate_back = separate_axis(self.target, self.spacing, rules)

    def crop(self, array):
        """The cropped part of (Z, Y, X) on the file's grid, its axes in the configuration's order."""
        return array[self.box].transpose(self.forward)


def prepare(image, grid, configuration, rules, previous):
    """What the network sees of a case, (C, Z, Y, X) float32. previous : the segmentation of the stage before"""
    mask = grid.crop(ndimage.binary_fill_holes((image != 0).any(0)))
    if previous is not None:
        mask = mask | (grid.crop(previous) != 0)
    channels = [
        resample_image(normalise(grid.crop(channel), mask, how), grid.shape, grid.separate, rules["image"])
        for channel, how in zip(image, configuration["normalisation"], strict=True)
    ]
    if previous is not None:
        before = resample_segmentation(grid.crop(previous), grid.shape, grid.separate, rules["segmentation"])
        values = range(1, configuration["input"]["shape"][1] - len(channels) + 1)
        channels += [before == value for value in values]
    return np.stack(channels).astype(np.float32)


# ---- the sliding window ----------------------------------------------------------------------------------------------


def starts(size, edge, step):
    """First voxels of the tiles along an axis, evenly spread."""
    n_steps = math.ceil((size - edge) / (edge * step)) + 1
    stride = (size - edge) / max(n_steps - 1, 1)
    return sorted({round(stride * index) for index in range(n_steps)})


def gaussian(edge, rules):
    """The weights along an axis of a tile."""
    impulse = np.zeros(edge)
    impulse[edge // 2] = 1
    sigma = edge * rules["sigma"]
    weights = ndimage.gaussian_filter1d(impulse, sigma, mode="constant", truncate=rules["truncate"])
    return (weights / weights.max()).astype(np.float32)


def mean_logits(networks, prepared, configuration, rules):
    """The mean over tiles, mirrored versions and folds, (heads, Z, Y, X)."""
    name, patch, axes = (
        configuration["input"]["name"],
        configuration["input"]["shape"][2:],
        configuration["mirror_axes"],
    )
    flips = [flip for n in range(len(axes) + 1) for flip in itertools.combinations(axes, n)]
    edges = [*[1] * (3 - len(patch)), *patch]  # a 2d network sees one plane after the other
    missing = [max(edge - n, 0) for edge, n in zip(edges, prepared.shape[1:], strict=True)]
    sides = [(n // 2, n - n // 2) for n in missing]
    padded = np.pad(prepared, [(0, 0), *sides], constant_values=rules["pad_value"])
    z, y, x = (gaussian(edge, rules["gaussian"]) for edge in edges)
    weight = z[:, None, None] * y[:, None] * x
    sums, total = 0.0, np.zeros(padded.shape[1:], np.float32)
    firsts = (starts(*of, rules["step_size"]) for of in zip(padded.shape[1:], edges, strict=True))
    for start in itertools.product(*firsts):
        box = tuple(slice(first, first + edge) for first, edge in zip(start, edges, strict=True))
        tile = padded[:, *box].reshape(1, -1, *patch)
        logits = sum(
            np.flip(network.run(None, {name: np.flip(tile, flip)})[0], flip) for flip in flips for network in networks
        )
        logits = logits.reshape(-1, *edges) / (len(flips) * len(networks))
        if not np.ndim(sums):
            sums = np.zeros((len(logits), *padded.shape[1:]), np.float32)
        sums[:, *box] += logits * weight
        total[box] += weight
    inside = (slice(before, before + n) for (before, _), n in zip(sides, prepared.shape[1:], strict=True))
    return (sums / total)[:, *inside]


# ---- back to the file's grid -----------------------------------------------------------------------------------------


def probabilities_on_file(logits, shape, grid, rules):
    """(heads, Z, Y, X); what was cropped is background."""
    order = rules["resampling"]["logits"]["order"]
    logits = np.stack([resample(one, grid.cropped, grid.separate_back, order) for one in logits])
    is_softmax = rules["labels"]["activation"] == "softmax"
    found = special.softmax(logits, 0) if is_softmax else special.expit(logits)
    result = np.zeros((len(found), *shape), np.float32)
    if is_softmax:
        result[0] = 1
    for one, target in zip(found, result, strict=True):
        target[grid.box] = one.transpose(grid.back)
    return result


def decide(probabilities, labels):
    """The label map, in the training's values."""
    paints = [output["paints"] for output in labels["outputs"]]
    if labels["activation"] == "softmax":
        return np.array(paints, np.int16)[probabilities.argmax(0)]
    label_map = np.zeros(probabilities.shape[1:], np.int16)
    for one, value in zip(probabilities, paints, strict=True):
        label_map[one > 0.5] = value
    return label_map


def segment(folder, image, spacing, rules):
    """The label map of (C, Z, Y, X) on its own grid, in the training's values."""
    segmented, mean = {}, 0.0
    for configuration in rules["configurations"]:
        networks = [onnxruntime.InferenceSession(folder / one["file"]) for one in configuration["networks"]]
        grid = Grid(image, spacing, configuration, rules["resampling"])
        previous = segmented.get(configuration["previous_stage"])
        prepared = prepare(image, grid, configuration, rules["resampling"], previous)
        logits = mean_logits(networks, prepared, configuration, rules["window"])
        found = probabilities_on_file(logits, image.shape[1:], grid, rules)
        segmented[configuration["name"]] = decide(found, rules["labels"])
        mean = mean + configuration["share"] * found
    return decide(mean, rules["labels"])


def main():
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what segpipe export-onnx wrote")
    parser.add_argument("images", type=Path, nargs="+", help="one file per channel")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the segmentation, .nii.gz")
    args = parser.parse_args()
    rules = json.loads((args.folder / "preprocessing.json").read_text())
    if rules["format_version"] != 1 or len(args.images) != len(rules["image"]["channels"]):
        parser.error(f"version 1 of the format, and images of {', '.join(rules['image']['channels'])}")
    image, spacing, like = read(args.images, rules["image"])
    write(args.out, segment(args.folder, image, spacing, rules), like, rules)


if __name__ == "__main__":
    main()
