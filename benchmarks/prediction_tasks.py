"""What prediction.py and prediction_presets.py predict: cases with a model that nnU-Net trained."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from segpipe.prepare.resample import resample_image

LARGE_SHAPE = (200, 400, 400)  # (Z, Y, X)


@dataclass(frozen=True)
class Task:
    """Cases and the model that predicts them.

    of : test (imagesTs), held_out (those that fold 0 is validated on), or large (one case, resampled)
    mirrored : whether it is predicted with mirroring as well
    rounds : at most so many
    """

    title: str
    dataset: str
    configuration: str
    of: str
    mirrored: bool
    rounds: int

    @property
    def trained(self) -> Path:
        """nnU-Net's model folder, in the folder of learning.py."""
        return Path("nnunet_results", self.dataset, f"nnUNetTrainer__nnUNetPlans__{self.configuration}")


HIPPOCAMPUS, NUCLEI = ("Dataset004_Hippocampus", "3d_fullres"), ("Dataset103_Nuclei2D", "2d")
TASKS = {
    "hippocampus": Task("Hippocampus, imagesTs", *HIPPOCAMPUS, "test", True, 9),
    "nuclei": Task("Nuclei2D, held out", *NUCLEI, "held_out", True, 9),
    "large": Task("400 x 400 x 200 voxels", *HIPPOCAMPUS, "large", False, 1),
}


@dataclass(frozen=True)
class Cases:
    """Folders for both programs, and the case names. labels : None where nobody knows them"""

    images: Path
    labels: Path | None
    names: list[str]


def cases(task: Task, data: Path, trained: Path, work: Path, most: int | None = None) -> Cases:
    """The cases of a task, as links into the dataset (the large one is made), in new folders of `work`.

    trained : the folder of learning.py; most : at most so many of the cases
    """
    dataset = data / task.dataset
    for folder in (dataset, trained / task.trained):
        if not folder.is_dir():
            sys.exit(f"there is no {folder}")
    ending = json.loads((dataset / "dataset.json").read_text())["file_ending"]
    if task.of == "large":
        return _large(dataset, work)
    if task.of == "test":
        names, split = [path.name[: -len(ending)] for path in sorted((dataset / "labelsTs").iterdir())], "Ts"
    else:
        names, split = held_out(trained, task.dataset), "Tr"
    names = names[:most]
    images, labels = work / "images", work / "labels"
    for folder in (images, labels):
        folder.mkdir(parents=True)
    for name in names:
        for path in (dataset / f"images{split}").glob(f"{name}_[0-9][0-9][0-9][0-9]{ending}"):
            (images / path.name).symlink_to(path.resolve())
        (labels / f"{name}{ending}").symlink_to((dataset / f"labels{split}/{name}{ending}").resolve())
    return Cases(images, labels, names)


def held_out(trained: Path, dataset: str) -> list[str]:
    """The cases that fold 0 is validated on, in both programs."""
    path = trained / "nnunet_preprocessed" / dataset / "splits_final.json"
    return list(map(str, json.loads(path.read_text())[0]["val"]))


def _large(dataset: Path, work: Path) -> Cases:
    """The first case of imagesTs, blown up to 160 x 160 x 80 mm and voxels of 0.4 mm; the network sees 1 mm."""
    path = sorted((dataset / "imagesTs").iterdir())[0]
    stored = nibabel.Nifti1Image.from_filename(path)
    array = np.asanyarray(stored.dataobj).T.astype(np.float32)
    large = resample_image(array[None], LARGE_SHAPE, None)[0].T
    affine = stored.affine.copy()
    affine[:3, :3] = np.diag([0.4] * 3)
    images = work / "images"
    images.mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(large, affine), images / "large_0000.nii.gz")
    return Cases(images, None, ["large"])
