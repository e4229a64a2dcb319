"""Preprocessed cases of segpipe as `nnUNetv2_train` reads them: one folder of nnU-Net's nnUNet_preprocessed.

Cases are CASE.npz and CASE.pkl, which nnU-Net 2.8 still reads (nnUNetDatasetNumpy in
nnunetv2/training/dataloading/nnunet_dataset.py) and which take no further library. What CASE.pkl holds is that of
nnunetv2/preprocessing/preprocessors/default_preprocessor.py. Pickles are written here; nothing reads one.
"""

import pickle
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe import digest
from segpipe.data import image
from segpipe.data.cases import Cases
from segpipe.data.labels import Labels
from segpipe.data.splits import SIDES
from segpipe.errors import SegpipeError, problem
from segpipe.interop.nnunet_export import dataset_json, reader
from segpipe.interop.nnunet_predictions import PROPERTIES
from segpipe.params import Params
from segpipe.prepare import plan as plan_module
from segpipe.prepare import store
from segpipe.prepare.nnunet_plans import INTENSITIES, PLANS_NAME, to_nnunet
from segpipe.prepare.plan import Configuration
from segpipe.prepare.preprocess import Grid
from segpipe.prepare.store import Store, StoredCase

log = getLogger(__name__)

DATASET_NAME = re.compile(r"Dataset\d{3}_.+")
REORIENTING = "SimpleITKIOWithReorient"  # nnU-Net's reader that turns axes to RAS
PREPARED = ("cases.json", "fingerprint.json", "plan.json", "splits.json")


def export_preprocessed(folder: Path, params: Params, out: Path, configurations: Sequence[str] | None = None) -> None:
    """Write `out`/<dataset>/ with the plans, the folds, the labels and the cases of some configurations.

    folder : what the pipeline prepared of the dataset
    out : nnU-Net's nnUNet_preprocessed
    configurations : default: those of params.yaml; first stages of cascades come along
    Raises SegpipeError where something is not prepared yet, the dataset's name is none of nnU-Net's, the folder
    exists, or cases are partly labelled.
    """
    _require_files([folder / name for name in PREPARED])
    cases, plan = Cases.read(folder / "cases.json", params.dataset), plan_module.read(folder / "plan.json")
    _require_exportable(cases, out)
    planned = _chosen(plan["configurations"], configurations or params.trained)
    sources = {name: _source(plan["configurations"], name, folder) for name in planned}
    _require_files([folder / source / "manifest.json" for source, _ in sources.values()])
    stores = {
        shared: store.ensure(cases, folder / "plan.json", folder / source / "manifest.json", params.runtime)
        for source, shared in sources.values()
    }
    described = {"labels": cases.content["labels"], "channel_names": cases.channel_names}
    # images are no longer read, and segmentations are what the labels are: .png beside .jpg, .nii.gz beside .dcm
    dataset = dataset_json({**described, "dataset": {"file_ending": cases.label_ending}})
    plans = to_nnunet({**plan, "configurations": planned}, cases.name, reader(cases.content, planned))
    for name, (_, shared) in sources.items():
        plans["configurations"][name]["data_identifier"] = _identifier(shared)
    with digest.new_folder(out / cases.name) as target:
        digest.write_json(target / f"{PLANS_NAME}.json", plans)
        digest.write_json(target / "dataset.json", {**dataset, "numTraining": len(cases.training)})
        digest.write_json(target / "dataset_fingerprint.json", _fingerprint(digest.read_json(folder / PREPARED[1])))
        folds = digest.read_json(folder / "splits.json")
        digest.write_json(target / "splits_final.json", [{side: fold[side] for side in SIDES} for fold in folds])
        with ThreadPoolExecutor(cases.at_once(params.runtime.threads)) as pool:
            jobs = [
                pool.submit(_export_case, case, stores, plans["image_reader_writer"], target) for case in cases.training
            ]
            for job in jobs:
                job.result()
    shown = ", ".join(planned)
    log.info("%d cases for nnUNetv2_train, %s, in %s", len(cases.training), shown, out / cases.name)


def _require_files(paths: Sequence[Path]) -> None:
    """Raises SegpipeError, with the way to make them, where files of the pipeline are missing."""
    missing = list(dict.fromkeys(str(path) for path in paths if not path.exists()))
    if missing:
        cure = f"run: snakemake --cores all {' '.join(missing)}"
        raise _error("not prepared yet", missing[0], "no file", "what the pipeline leaves there", cure)


def _require_exportable(cases: Cases, out: Path) -> None:
    if not DATASET_NAME.fullmatch(cases.name):
        cure = "rename the folder, and set `dataset` in params.yaml"
        raise _error("not a name of nnU-Net's", cases.root, cases.name, "DatasetNNN_Name, as Dataset004_Liver", cure)
    if (out / cases.name).exists():
        raise _error("the folder exists", "--out", out / cases.name, "a new one", "remove it, or name another")
    partly = [case for case in cases.training if cases.annotated(case) is not None]
    if partly:
        cure = "leave them out, or give what is not annotated the ignore label"
        expected = "all classes annotated: nnU-Net takes what is missing for background"
        raise _error("partly labelled cases", cases.root, ", ".join(partly), expected, cure)


def _chosen(planned: Mapping[str, Configuration], names: Sequence[str]) -> dict[str, Configuration]:
    """Configurations by name, each after the stage before it."""
    chosen: dict[str, Configuration] = {}
    for name in names:
        if name not in planned:
            raise _error("no such configuration", "--configurations", name, ", ".join(planned), "name one of these")
        before = planned[name].previous_stage
        chosen |= {stage: planned[stage] for stage in (before, name) if stage is not None}
    return chosen


def _source(planned: Mapping[str, Configuration], name: str, folder: Path) -> tuple[str, str]:
    """Whose preprocessed cases are those of a configuration, and what nnU-Net shall call them.

    A cascade has the cases of 3d_fullres, in nnU-Net as well, and takes them from there before its first stage is
    trained: nnU-Net segments with its own first stage.
    """
    alike = [other for other in planned if _preparation(planned[other]) == _preparation(planned[name])]
    made = [other for other in alike if (folder / other / "manifest.json").exists()]
    return (made or alike)[0], alike[0]


def _preparation(planned: Configuration) -> list[Any]:
    return [planned.spacing_mm, planned.normalisation, planned.use_mask_for_norm]


def _identifier(configuration: str) -> str:
    """nnU-Net's name for the folder with the cases of a configuration."""
    return f"{PLANS_NAME}_{configuration}"


def _fingerprint(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """nnU-Net's dataset_fingerprint.json."""
    cases = fingerprint["cases"].values()
    return {
        "spacings": [case["spacing_mm"] for case in cases],
        "shapes_after_crop": [case["shape_after_crop"] for case in cases],
        INTENSITIES[0]: fingerprint["channels"],
        "median_relative_size_after_cropping": fingerprint["median_relative_size_after_cropping"],
    }


def _export_case(case: str, stores: Mapping[str, Store], reader_name: str, out: Path) -> None:
    """Write the label of a case, in the values of the training, and its preprocessed files for all configurations."""
    cases = next(iter(stores.values())).cases
    truth = out / "gt_segmentations" / f"{case}{cases.label_ending}"
    image.write_label_like(truth, cases.read_label(case), cases.image_path(case), cases.orientation)
    noted = _noted(cases, case, reader_name)
    for configuration, opened in stores.items():
        folder, stored = out / _identifier(configuration), opened.open(case)
        with digest.new_file(folder / f"{case}.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, data=stored.image, seg=stored.label[None])
        properties = {
            **noted,
            **_way_back(opened.grid(case)),
            "class_locations": class_locations(stored, cases.labels),
        }
        with digest.new_file(folder / f"{case}.pkl") as temporary, temporary.open("wb") as file:
            pickle.dump(properties, file)


def _noted(cases: Cases, case: str, reader_name: str) -> dict[str, Any]:
    """What nnU-Net's reader notes of an image, and its writer of segmentations wants."""
    as_stored = image.read_image(cases.image_path(case))
    volume = image.turned(as_stored, cases.orientation)
    if reader_name != REORIENTING:
        return PROPERTIES[reader_name](volume)
    noted = PROPERTIES["SimpleITKIO"](volume)
    return {**noted, "sitk_stuff": {**noted["sitk_stuff"], "original_orientation": image.axis_codes(as_stored)}}


def _way_back(grid: Grid) -> dict[str, Any]:
    """A `Grid` in nnU-Net's terms, all in the plan's order of axes."""
    return {
        "shape_before_cropping": grid.shape,
        "bbox_used_for_cropping": [list(side) for side in grid.crop],
        "shape_after_cropping_and_before_resampling": grid.cropped_shape,
    }


def class_locations(stored: StoredCase, labels: Labels) -> dict[int | tuple[int, ...], NDArray[np.int64]]:
    """Voxels to centre patches on, (N, 4) each: 0, z, y, x. A class that the case does not have has none.

    The key is a class's value, or all values of a region; with an ignore label there is one more,
    (-1, 0, 1, ...), for whatever is annotated.
    """
    found: dict[int | tuple[int, ...], NDArray[np.int64]] = {}
    nowhere = np.empty(0, np.int64)
    for index, values in enumerate(labels.foreground.values(), 1):
        key = values[0] if len(values) == 1 else values
        found[key] = _coordinates(stored.foreground.get(index, nowhere), stored.label.shape)
    if stored.annotated is not None:
        found[-1, *range(labels.n_values)] = _coordinates(stored.annotated, stored.label.shape)
    return found


def _coordinates(voxels: NDArray[np.integer], shape: tuple[int, ...]) -> NDArray[np.int64]:
    return np.stack([np.zeros(len(voxels), np.int64), *np.unravel_index(voxels, shape)], axis=1)


def _error(what: str, where: object, found: object, expected: object, cure: str) -> SegpipeError:
    return SegpipeError(problem(what, where=where, found=found, expected=expected, cure=cure))
