"""One small image of every format, for the tests of reading and writing."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import tifffile
from numpy.typing import NDArray
from PIL import Image
from volumes import OBLIQUE, image_array, nifti

SHAPE = (3, 4, 5)  # (Z, Y, X)
Maker = Callable[[Path], Path]


def numbers(shape: tuple[int, ...] = SHAPE, dtype: Any = np.int16) -> NDArray[Any]:
    """No two neighbours are the same, whatever the axis."""
    return np.random.default_rng(1).permutation(int(np.prod(shape))).reshape(shape).astype(dtype)


def itk(path: Path, array: NDArray[Any], compressed: bool = True, turned: bool = True) -> Path:
    """An oblique image of ITK's, spacing (X, Y, Z) 0.5, 2, 3 mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    n_axes = image.GetDimension()
    image.SetSpacing((0.5, 2, 3)[:n_axes])
    image.SetOrigin((-12.5, 30.25, 7)[:n_axes])
    if turned:
        plane = np.array([[0.0, -1.0], [-1.0, 0.0]])
        image.SetDirection((OBLIQUE * [[-1, 1, 1]] if n_axes == 3 else plane).ravel().tolist())
    sitk.WriteImage(image, str(path), compressed)
    return path


def tiff(path: Path, array: NDArray[Any], spacing_mm: Any = None, sidecar: str | None = None, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, array, **{"photometric": "minisblack", **how})
    if spacing_mm is not None:
        (path.parent / (sidecar or f"{path.stem}.json")).write_text(json.dumps({"spacing": spacing_mm}))
    return path


def picture(path: Path, array: NDArray[Any], mode: str | None = None, **how: Any) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **how)
    return path


def indexed(path: Path, array: NDArray[Any], **how: Any) -> Path:
    """Colours of a palette."""
    image = Image.fromarray(array, "L").copy()
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([*(255, 0, 0), *(0, 255, 0), *(10, 20, 30), *([7] * 3 * 253)])
    image.save(path, **how)
    return path


def png_bytes(array: NDArray[Any]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


BYTES = numbers((4, 5), np.uint8)
# every format that is written as well, 3D and 2D
REFERENCES: dict[str, Maker] = {
    "nii.gz": lambda f: nifti(f / "image.nii.gz", image_array(shape=(5, 4, 3)), (0.5, 2, 3), OBLIQUE * [[-1, 1, 1]]),
    "nii": lambda f: nifti(f / "image.nii", image_array(shape=(5, 4, 3)), (0.5, 2, 3), OBLIQUE[[2, 0, 1]]),
    "nii 2D": lambda f: nifti(f / "image.nii", image_array(shape=(5, 4)), (0.7, 0.9, 1)),
    "mha": lambda f: itk(f / "image.mha", numbers()),
    "mha 2D": lambda f: itk(f / "image.mha", numbers((4, 5))),
    "mhd": lambda f: itk(f / "image.mhd", numbers()),
    "nrrd": lambda f: itk(f / "image.nrrd", numbers()),
    "nrrd 2D": lambda f: itk(f / "image.nrrd", numbers((4, 5))),
    "nhdr": lambda f: itk(f / "image.nhdr", numbers()),
    "tif": lambda f: tiff(f / "image_0000.tif", numbers(), [3, 2, 0.5], "image.json"),
    "tiff": lambda f: tiff(f / "image_0000.tiff", numbers()),
    "tif 2D": lambda f: tiff(f / "image_0000.tif", numbers((4, 5))),
    "png": lambda f: picture(f / "image_0000.png", BYTES),
    "bmp": lambda f: picture(f / "image_0000.bmp", BYTES),
    "jpg": lambda f: picture(f / "image_0000.jpg", BYTES),
    "PNG": lambda f: picture(f / "image_0000.PNG", BYTES),
}
