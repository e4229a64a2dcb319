"""Probabilities of segpipe as nnU-Net's own ensemble command reads them.

Beside CASE.npz it insists on CASE.pkl, a pickle of what its reader of images noted, and on plans.json and dataset.json.
Only this module writes a pickle; nothing here reads one.
"""

import pickle
from collections.abc import Callable
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np

from segpipe import digest
from segpipe.data.cases import Cases
from segpipe.data.image import Volume
from segpipe.errors import SegpipeError, problem, raise_all
from segpipe.inference import images, models, softmax_file
from segpipe.interop.nnunet_export import dataset_json, plans_json
from segpipe.training import checkpoint

log = getLogger(__name__)

LPS = np.diag([-1.0, -1.0, 1.0])  # SimpleITK's world has the first two axes of NIfTI's the other way round


def export_predictions(predictions: Path, image_folder: Path, model: Path, kind: str, out: Path) -> None:
    """Write the folder `out` with the npz files of `predictions` and what nnUNetv2_ensemble wants beside them.

    predictions : of `segpipe predict --probabilities`, or a validation folder of the pipeline
    image_folder : the images that were predicted
    model : the MODEL that predicted them; kind : final or best
    Raises SegpipeError, for all at once, where a case has no image or probabilities on another grid.
    """
    if out.exists():
        cure = "remove it, or name another"
        raise SegpipeError(problem("the folder exists", where="--out", found=out, expected="a new one", cure=cure))
    found = models.find(model, kind)
    content = checkpoint.peek(next(iter(next(iter(found.values())).values())))
    cases, plans = images.at([image_folder], content), plans_json(found)
    folder = predictions / "softmax" if (predictions / "softmax").is_dir() else predictions
    files = sorted(folder.glob("[!.]*.npz"))
    properties = PROPERTIES.get(plans["image_reader_writer"])
    if properties is None or not files:
        what = "no probabilities" if properties else "a format that nnU-Net reads otherwise"
        expected = "CASE.npz, as segpipe predict --probabilities writes them" if properties else ", ".join(PROPERTIES)
        cure = "name another folder" if properties else "ensemble with segpipe"
        shown = folder if properties else plans["image_reader_writer"]
        raise SegpipeError(problem(what, where=predictions, found=shown, expected=expected, cure=cure))
    with digest.new_folder(out) as target:
        problems = [text for path in files if (text := _export_case(path, cases, properties, target))]
        raise_all(str(predictions), problems)
        digest.write_json(target / "plans.json", plans)
        digest.write_json(target / "dataset.json", dataset_json(content))
    log.info("%d cases for nnUNetv2_ensemble in %s", len(files), out)


def _export_case(path: Path, cases: Cases, properties: Callable[[Volume], dict[str, Any]], out: Path) -> str | None:
    """Write the two files of a case, or say what is wrong."""
    case = path.stem
    if case not in cases.test:
        found, cure = f"{len(cases.test)} others", "name the folder with the images that were predicted"
        return problem("no image of a case", where=cases.root, found=found, expected=f"{case}_0000...", cure=cure)
    volume, shape = cases.read_image(case), softmax_file.load(path).shape[1:]
    if volume.shape != shape:
        cure = "name the folder with the images that were predicted"
        return problem("probabilities of another grid", where=path, found=shape, expected=volume.shape, cure=cure)
    digest.copy(path, out / path.name)
    with digest.new_file(out / f"{case}.pkl") as temporary, temporary.open("wb") as file:
        pickle.dump(properties(volume), file)
    return None


def _of_simpleitk(volume: Volume) -> dict[str, Any]:
    """What nnU-Net's SimpleITKIO notes of an image: in SimpleITK's order (x, y, z) and world (LPS)."""
    axes = LPS @ volume.affine[:3, :3]
    edges = np.linalg.norm(axes, axis=0)
    n = 2 if volume.is_2d else 3
    direction = (axes / edges)[:n, :n]
    noted = {"spacing": edges[:n], "origin": (LPS @ volume.affine[:3, 3])[:n], "direction": direction.ravel()}
    in_tuples = {key: tuple(float(number) for number in numbers) for key, numbers in noted.items()}
    return {"sitk_stuff": in_tuples, "spacing": list(volume.spacing_mm)}


def _of_picture(volume: Volume) -> dict[str, Any]:
    return {"spacing": (999, 1, 1)}


def _of_tiff(volume: Volume) -> dict[str, Any]:
    return {"spacing": list(volume.spacing_mm)}


PROPERTIES: dict[str, Callable[[Volume], dict[str, Any]]] = {
    "SimpleITKIO": _of_simpleitk,
    "NaturalImage2DIO": _of_picture,
    "Tiff3DIO": _of_tiff,
}
