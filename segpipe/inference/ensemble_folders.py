"""The mean of several folders of probabilities: of segpipe's predictions and validations, and of nnU-Net's."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe import digest
from segpipe.data import image
from segpipe.data.labels import Labels, Values
from segpipe.errors import SegpipeError, problem, raise_all
from segpipe.inference import folders, mean_softmax, softmax_file
from segpipe.inference.folders import Folder, Work

DTYPE = "float16"  # of the mean, where it is written


@dataclass(frozen=True)
class _Ensemble:
    """Folders, their weights and what their classes are."""

    members: Sequence[Folder]
    weights: Sequence[float]
    labels: Labels
    orientation: str
    out: Path
    probabilities: bool

    def work(self, case: str) -> Work:
        """What is done of a case."""
        softmax, like = [member.softmax[case] for member in self.members], self._like(case)
        label = self.out / like.name
        npz = self.out / f"{case}.npz"
        how = [self.weights, self.labels.to_json(), self.orientation, self.probabilities]

        def made_of() -> str:
            files = [*(digest.of_file(path) for path in softmax), image.identity(like)]
            return digest.of([files, how, digest.of_code("ensemble_folders")])

        def do() -> None:
            shape = softmax_file.shape(softmax[0])
            _require_grid(softmax[0], shape[1:], like, self.orientation)
            mean_softmax.require_heads(softmax[0], self.labels)
            painted = mean_softmax.LabelMap(shape[1:], self.labels)
            classes = _painting(painted, mean_softmax.classes(softmax, self.weights))
            if self.probabilities:
                softmax_file.save_classes(npz, classes, shape, DTYPE)
            else:
                for _ in classes:
                    pass
            image.write_label_like(label, self.labels.to_files(painted.array), like, self.orientation)

        return Work(made_of, [label, npz] if self.probabilities else [label], do)

    def _like(self, case: str) -> Path:
        """A segmentation that has the geometry."""
        return next(member.segmentations[case] for member in self.members if case in member.segmentations)


def ensemble_folders(
    paths: Sequence[Path], out: Path, weights: Sequence[float] | None, probabilities: bool, threads: int | None = None
) -> None:
    """Write the segmentation of the mean of each case, and the mean itself where asked for, into `out`.

    weights : one for each folder; None: all the same
    threads : None for all that the process has
    Raises SegpipeError, with all problems, before anything is written; and at the end with cases that failed.
    """
    members = [Folder.read(path) for path in paths]
    raise_all("these folders are no ensemble", [*_wrong_arguments(paths, out, weights), *_missing(members)])
    shapes: dict[str, softmax_file.Shape] = {}
    raise_all("these folders are no ensemble", _other_grids(members, shapes))
    labels = next((one.labels for one in members if one.labels), None) or _plain(next(iter(shapes.values()))[0])
    orientation = next((one.orientation for one in members if one.labels), "as-stored")
    work = _Ensemble(members, [*(weights or [1.0] * len(members))], labels, orientation, out, probabilities)
    out.mkdir(parents=True, exist_ok=True)
    folders.describe(out, labels, orientation)
    at_once = mean_softmax.at_once([*shapes.values()], threads)
    folders.fill(out, {case: work.work(case) for case in shapes}, at_once)


def _wrong_arguments(paths: Sequence[Path], out: Path, weights: Sequence[float] | None) -> Iterator[str]:
    if weights is not None and (len(weights) != len(paths) or min(weights) <= 0):
        expected, cure = f"{len(paths)} numbers above 0", "give one weight for each folder"
        yield problem("weights that do not fit", where="--weights", found=weights, expected=expected, cure=cure)
    if out.resolve() in [path.resolve() for path in paths]:
        expected, cure = "another folder", "name a new one"
        yield problem("the result would lie among its members", where="-o", found=out, expected=expected, cure=cure)


def _missing(members: Sequence[Folder]) -> Iterator[str]:
    """What a folder lacks that another one has, and meanings that differ."""
    known = [member for member in members if member.labels]
    cases = sorted({case for member in members for case in member.softmax})
    if not cases:
        where, cure = ", ".join(str(member.path) for member in members), "predict with probabilities"
        yield problem("no probabilities", where=where, found="no npz files", expected="CASE.npz", cure=cure)
    for member in members:
        lacks = [case for case in cases if case not in member.softmax]
        if lacks:
            found, expected = f"no npz of {', '.join(lacks)}", "the cases of all other members"
            yield problem("cases are missing", where=member.path, found=found, expected=expected, cure="predict them")
        if member.labels and (member.labels, member.orientation) != (known[0].labels, known[0].orientation):
            found, expected = f"{member.labels.described()}; {member.orientation}", f"the classes of {known[0].path}"
            cure = "ensemble models of one dataset"
            yield problem("folders of other classes", where=member.path, found=found, expected=expected, cure=cure)
    for case in cases:
        if not any(case in member.segmentations for member in members):
            expected, cure = f"{case}.nii.gz or the like, for the geometry", "keep the segmentations beside the npz"
            yield problem("no segmentation", where=members[0].path, found=f"{case}.npz", expected=expected, cure=cure)


def _other_grids(members: Sequence[Folder], shapes: dict[str, softmax_file.Shape]) -> Iterator[str]:
    """Files that cannot be read or differ in shape; the shapes of the first folder go into `shapes`."""
    for case in members[0].softmax:
        for member in members:
            try:
                found = softmax_file.shape(member.softmax[case])
            except SegpipeError as error:
                yield str(error)
                continue
            first = shapes.setdefault(case, found)
            if found != first:
                expected, cure = f"{first} as {members[0].path}", "predict the same images with all members"
                yield problem("another grid", where=member.softmax[case], found=found, expected=expected, cure=cure)


def _plain(n_classes: int) -> Labels:
    """Classes that nothing is known of."""
    names: dict[str, Values] = {f"class {value}" if value else "background": (value,) for value in range(n_classes)}
    return Labels(names, None, None, tuple(range(n_classes)))


def _painting(painted: mean_softmax.LabelMap, classes: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    for one in classes:
        painted.add(one)
        yield one


def _require_grid(softmax: Path, shape: Sequence[int], like: Path, orientation: str) -> None:
    found = image.read_label(like, orientation).shape
    if tuple(found) != tuple(shape):
        expected, cure = f"{tuple(shape)}, as {softmax.name}", "predict this case again"
        what = "segmentation and probabilities on different grids"
        raise SegpipeError(problem(what, where=like, found=tuple(found), expected=expected, cure=cure))
