"""Rules applied to a folder of segmentations, of segpipe or nnU-Net."""

from pathlib import Path

import numpy as np

from segpipe import digest
from segpipe.data import image
from segpipe.data.labels import Labels
from segpipe.errors import SegpipeError, problem
from segpipe.inference import folders, mean_softmax, postprocess
from segpipe.inference.folders import Folder, Work
from segpipe.inference.postprocess import Rule


def postprocess_folder(path: Path, rules_path: Path, out: Path, threads: int | None = None) -> None:
    """Write every segmentation of a folder, after the rules, into `out`, in the format that it has.

    rules_path : a postprocessing.json, which also says what the classes are
    threads : None for all that the process has
    Raises SegpipeError before anything is written where folder and rules do not fit, and at the end with cases that
    failed.
    """
    folder = Folder.read(path)
    rules = postprocess.read(rules_path, folder.labels)
    labels = Labels.from_json(digest.read_json(rules_path)["labels"])
    in_place = out.resolve() in {file.parent.resolve() for file in folder.segmentations.values()}
    if in_place or not folder.segmentations:
        what = "the segmentations would be replaced" if in_place else "no segmentations"
        expected, where = ("another folder", "-o") if in_place else ("CASE.nii.gz or the like", str(path))
        cure = "name another folder"
        raise SegpipeError(problem(what, where=where, found=out if in_place else "none", expected=expected, cure=cure))
    out.mkdir(parents=True, exist_ok=True)
    folders.describe(out, labels, folder.orientation)
    work = {case: _work(file, out, labels, rules) for case, file in folder.segmentations.items()}
    largest = max(folder.segmentations.values(), key=lambda file: file.stat().st_size)
    folders.fill(out, work, mean_softmax.at_once([image.read_label(largest).shape], threads))


def _work(file: Path, out: Path, labels: Labels, rules: list[Rule]) -> Work:
    def made_of() -> str:
        said = [postprocess.to_json(rule) for rule in rules]
        return digest.of([image.identity(file), said, labels.to_json(), digest.of_code("postprocess_folder")])

    def do() -> None:
        volume = image.read_label(file)
        segmentation = labels.from_files(volume.array[0].astype(np.int16, copy=False))
        if segmentation.min(initial=0) < 0:
            cure = "name the rules of this dataset"
            found = f"values {np.unique(volume.array).tolist()}"
            what = "values that are no class"
            raise SegpipeError(problem(what, where=file, found=found, expected=labels.described(), cure=cure))
        after = postprocess.apply(segmentation, labels, rules, volume.spacing_mm)
        image.write_label_like(out / file.name, labels.to_files(after), file)

    return Work(made_of, [out / file.name], do)
