"""The generated dataset: small MR-like volumes of a body with three organs, made in seconds.

Organs overlap in intensity, lie at varying places and angles, and carry texture, a bias field and noise. Spacings are
anisotropic and vary; affines are oblique. Outside the body the image is exactly zero, as after skull stripping.
"""

import gzip
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from segpipe import digest
from segpipe.params import Phantoms

NAME = "Dataset000_Phantoms"
LABELS = {"background": 0, "liver": 1, "kidneys": 2, "vessel": 3}
ENDING = ".nii.gz"
Array = NDArray[np.float64]


def files(settings: Phantoms) -> list[str]:
    """Every file that `generate` writes, relative to the dataset's folder."""
    names = ["dataset.json"]
    for index in range(settings.n_train):
        names += [f"imagesTr/{_case(index)}_0000{ENDING}", f"labelsTr/{_case(index)}{ENDING}"]
    for index in range(settings.n_train, settings.n_train + settings.n_test):
        names.append(f"imagesTs/{_case(index)}_0000{ENDING}")
    return names


def generate(folder: Path, settings: Phantoms) -> None:
    """Write the dataset in place of an earlier one; the same seed gives the same files."""
    with digest.new_folder(folder) as new:
        for index in range(settings.n_train + settings.n_test):
            image, label, affine = phantom(np.random.default_rng([settings.seed, index]))
            kind = "Tr" if index < settings.n_train else "Ts"
            _write(new / f"images{kind}/{_case(index)}_0000{ENDING}", image, affine)
            if kind == "Tr":
                _write(new / f"labelsTr/{_case(index)}{ENDING}", label, affine)
        description = {
            "channel_names": {"0": "MRI"},
            "labels": LABELS,
            "numTraining": settings.n_train,
            "file_ending": ENDING,
        }
        digest.write_json(new / "dataset.json", description)


def phantom(rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.uint8], Array]:
    """One case: image and label (X, Y, Z), affine (4, 4)."""
    spacing_mm = np.array([1.0, 1.0, 1.0]) * rng.uniform(0.9, 1.1) * [1, 1, rng.choice([1.5, 2.0])]
    shape = np.round(np.array([rng.uniform(44, 52), rng.uniform(40, 48), rng.uniform(46, 54)]) / spacing_mm).astype(int)
    points = _grid_mm(shape, spacing_mm)
    pose = Rotation.from_rotvec(rng.normal(0, 0.15, 3))
    body = _ellipsoid(points, np.zeros(3), [22, 20, 23], pose)
    label = np.where(body < 1, _organs(points, pose, rng), 0).astype(np.uint8)
    image = _intensities(label, spacing_mm, rng)
    return np.where(body < 1, image, 0).astype(np.float32), label, _oblique_affine(shape, spacing_mm, rng)


def _case(index: int) -> str:
    return f"phantom_{index:03d}"


def _grid_mm(shape: NDArray[np.int_], spacing_mm: Array) -> Array:
    """Coordinates of every voxel around the centre, (X, Y, Z, 3)."""
    axes = [(np.arange(n) - (n - 1) / 2) * edge for n, edge in zip(shape, spacing_mm, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def _ellipsoid(points: Array, centre: Array, radii_mm: list[float], pose: Rotation) -> Array:
    """Below 1 inside the ellipsoid."""
    local = (points.reshape(-1, 3) @ pose.as_matrix() - centre) / radii_mm
    return np.linalg.norm(local, axis=1).reshape(points.shape[:3])


def _organs(points: Array, pose: Rotation, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A large ellipsoid, a pair of small ones, and a curved vessel between them."""

    def near(x: float, y: float, z: float) -> Array:
        return np.array([x, y, z]) + rng.normal(0, 1.2, 3)

    scale = rng.uniform(0.85, 1.15)
    label = np.zeros(points.shape[:3], np.uint8)
    tilt = pose * Rotation.from_rotvec(rng.normal(0, 0.2, 3))
    label[_ellipsoid(points, near(-7, 6, 5), [9 * scale, 7 * scale, 10 * scale], tilt) < 1] = 1
    for side in (-1, 1):
        label[_ellipsoid(points, near(side * 9, -8, -8), [5 * scale, 5 * scale, 7.5 * scale], tilt) < 1] = 2
    along = (points.reshape(-1, 3) @ pose.as_matrix()).reshape(points.shape)
    bend = rng.uniform(2, 5)
    axis_x, axis_y = 4 + bend * np.sin(along[..., 2] / 9), -1 + rng.normal(0, 0.8)
    label[np.hypot(along[..., 0] - axis_x, along[..., 1] - axis_y) < rng.uniform(2.8, 3.6)] = 3
    return label


def _intensities(label: NDArray[np.uint8], spacing_mm: Array, rng: np.random.Generator) -> Array:
    """Class means with variation between cases, texture, a smooth bias field, noise, an arbitrary scale."""
    means = np.array([100.0, 135.0, 60.0, 165.0]) + rng.normal(0, 5, 4)

    def field(smooth_mm: float) -> Array:
        smooth = gaussian_filter(rng.normal(size=label.shape), smooth_mm / spacing_mm, mode="reflect")
        return smooth / smooth.std()

    image = gaussian_filter(means[label], 0.6 / spacing_mm) + 8 * field(1.5) + 6 * rng.normal(size=label.shape)
    image *= np.exp(0.12 * field(18))
    return np.maximum(image * rng.uniform(0.5, 4), 1e-3)


def _oblique_affine(shape: NDArray[np.int_], spacing_mm: Array, rng: np.random.Generator) -> Array:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(rng.normal(0, 0.2, 3)).as_matrix() * spacing_mm
    affine[:3, 3] = -affine[:3, :3] @ ((shape - 1) / 2) + rng.normal(0, 20, 3)
    return affine


def _write(path: Path, array: NDArray[np.generic], affine: Array) -> None:
    with digest.new_file(path) as temporary:
        temporary.write_bytes(gzip.compress(Nifti1Image(array, affine).to_bytes(), 6, mtime=0))
