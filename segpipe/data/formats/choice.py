"""Which format a file has, by its ending and its first bytes, and which module reads it."""

import importlib
import re
import zlib
from pathlib import Path
from typing import Any

from segpipe.data.formats.grid import COPY_AGAIN, unreadable
from segpipe.errors import SegpipeError, problem

FORMATS = {
    ".nii.gz": "NIfTI",
    ".nii": "NIfTI",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".png": "PNG",
    ".bmp": "BMP",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".dcm": "DICOM",
}
MAGIC = {
    "NIfTI": rb"\x5c\x01\0\0|\0\0\x01\x5c|\x1c\x02\0\0|\0\0\x02\x1c",
    "MetaImage": rb"(ObjectType|NDims|Comment)\s*=",
    "NRRD": rb"NRRD000\d",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "BMP": rb"BM.{12}[\x0c-\x7c]\0\0\0",
    "JPEG": rb"\xff\xd8\xff",
    "DICOM": rb".{128}DICM",
}
HEAD_BYTES = 256
MODULES = {
    "NIfTI": "nifti",
    "MetaImage": "metaimage",
    "NRRD": "nrrd",
    "TIFF": "tiff",
    "PNG": "natural",
    "BMP": "natural",
    "JPEG": "natural",
    "DICOM": "dicom",
}


def module_of(path: Path) -> Any:
    """The module of a file's format, loaded when the first such file is met: most datasets need one of them.

    Each has the functions read(path, as_label), grid(path), companions(path), beside(path, grid) and
    encode(path, label, grid). Raises SegpipeError for an unknown ending, and where a package is missing.
    """
    kind = format_of(path)
    try:
        return importlib.import_module(f"segpipe.data.formats.{MODULES[kind]}")
    except ModuleNotFoundError as error:
        what, cure = f"{kind} cannot be read", f"pip install segpipe[{MODULES[kind]}]"
        found = f"no package {error.name}"
        raise SegpipeError(problem(what, where=path, found=found, expected=error.name, cure=cure)) from None


def format_of(path: Path) -> str:
    """By the ending, in capitals or not; a folder is a DICOM series. Raises SegpipeError for an unknown ending."""
    name = path.name.lower()
    found = next((kind for ending, kind in FORMATS.items() if name.endswith(ending)), None)
    if found is None and path.is_dir():
        return "DICOM"
    if found is None:
        raise SegpipeError(
            problem(
                "unsupported file ending",
                where=path,
                found="".join(path.suffixes) or "no ending",
                expected=", ".join(FORMATS),
                cure="convert the file",
            )
        )
    return found


def require_content(path: Path) -> None:
    """Raise SegpipeError where the file is missing, or begins as one of another format."""
    kind = format_of(path)
    if path.is_dir() and kind == "DICOM":
        return
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError:
        raise SegpipeError(
            problem("missing file", where=path, found="no such file", expected=f"a {kind} file", cure=COPY_AGAIN)
        ) from None
    except OSError as error:
        raise unreadable(path, error, f"a {kind} file") from None
    if path.name.lower().endswith(".gz"):
        head = _unpacked(head)
    found = next((name for name, magic in MAGIC.items() if re.match(magic, head, re.DOTALL)), None)
    if found not in (None, kind):
        raise SegpipeError(
            problem("not what its name says", where=path, found=found, expected=kind, cure=f"name it as {found}")
        )


def _unpacked(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(head)
    except zlib.error:
        return head  # which the reader will complain of
