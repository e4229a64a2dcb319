"""The saved softmax of a case: `<case>.npz`, key `probabilities`, (C, Z, Y, X) on the grid of its file.

Readable by numpy.load and by nnU-Net's ensembling; files of both are read. Written and read class after class, so that
memory does not grow with the number of classes. The bytes of a file follow from its content and the version of ISA-L.
"""

import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from io import BytesIO
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from isal import isal_zlib
from numpy.lib import format as npy
from numpy.typing import NDArray
from stream_zip import ZIP_64, stream_zip
from torch import Tensor

from segpipe import digest
from segpipe.errors import SegpipeError, problem
from segpipe.inference.export import Probabilities

KEY = "probabilities"
LEVEL = 1  # of ISA-L: sizes as zlib's levels 1 to 6 give them, at ten times the speed (benchmarks/softmax_saving.py)
BLOCK_BYTES = 1 << 20  # read, and handed to the compressor, at once
SERIAL = 2**15 - 1  # numbers below which torch starts no other threads
BEGINNING = datetime(1980, 1, 1)  # of a zip file's calendar: files of the same content are the same
UNREADABLE = (OSError, zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, RuntimeError)

Shape = tuple[int, int, int, int]


def save(path: Path, probabilities: Probabilities, dtype: str) -> None:
    """Write `<case>.npz` with (C, Z, Y, X) `probabilities` at once; a memory-mapped array stays where it is.

    dtype : float16 or float32, as which they are stored
    """
    n_classes, depth, height, width = probabilities.shape
    save_classes(path, probabilities, (n_classes, depth, height, width), dtype)


def save_classes(path: Path, classes: Iterable[Probabilities], shape: Shape, dtype: str) -> None:
    """Write `<case>.npz` from one (Z, Y, X) array after the other.

    shape : of all of them together, (C, Z, Y, X); dtype : float16 or float32, as which they are stored
    """
    header = BytesIO()
    described = {"descr": npy.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(header, described)
    member = (f"{KEY}.npy", BEGINNING, stat.S_IFREG | 0o644, ZIP_64, _content(header.getvalue(), classes, dtype))
    pieces = stream_zip(
        [member],
        chunk_size=BLOCK_BYTES,
        get_compressobj=_compressor,
        extended_timestamps=False,
    )
    with digest.new_file(path) as temporary, temporary.open("wb") as file:
        file.writelines(pieces)


def _compressor() -> Any:
    return isal_zlib.compressobj(LEVEL, wbits=-zlib.MAX_WBITS)


def _content(header: bytes, classes: Iterable[Probabilities], dtype: str) -> Iterator[bytes]:
    """Of the npy file within the zip file."""
    yield header
    for one in classes:
        slices = max(1, BLOCK_BYTES // (4 * prod(one.shape[1:])))
        for start in range(0, len(one), slices):
            block = np.array(one[start : start + slices], one.dtype.newbyteorder("="), order="C")
            yield _converted(torch.from_numpy(block).flatten(), getattr(torch, dtype)).numpy().tobytes()


def _converted(values: Tensor, dtype: torch.dtype) -> Tensor:
    """torch converts to float16 twenty times as fast as numpy; in parts that it leaves to the calling thread, as others
    are busy with the next case.
    """
    stored = torch.empty(values.shape, dtype=dtype)
    for target, part in zip(stored.split(SERIAL), values.split(SERIAL), strict=True):
        target.copy_(part)
    return stored


def load(path: Path) -> Probabilities:
    """All of what `save`, nnU-Net or numpy wrote. Raises SegpipeError where it is no such file, or a damaged one."""
    with _opened(path) as (_, of_all, dtype, _):
        loaded = np.empty(of_all, dtype.newbyteorder("="))
    for index, one in enumerate(classes(path)):
        loaded[index] = one
    return loaded


def shape(path: Path) -> Shape:
    """(C, Z, Y, X) of a file, of which only the beginning is read. Raises SegpipeError as `load` does."""
    with _opened(path) as (_, of_all, _, _):
        return of_all


def classes(path: Path) -> Iterator[Probabilities]:
    """One (Z, Y, X) array after the other, in the precision of the file; one is in memory at a time.

    Only an array in Fortran's order, which has its classes interleaved, comes into memory as a whole.
    Raises SegpipeError as `load` does, of damage when it comes to it.
    """
    with _opened(path) as (file, of_all, dtype, fortran):
        if fortran:
            yield from _read(file, prod(of_all), dtype).reshape(of_all, order="F")
        else:
            for _ in range(of_all[0]):
                yield _read(file, prod(of_all[1:]), dtype).reshape(of_all[1:])
        file.read(1)  # nothing, but at the end zipfile compares the checksum


def _read(file: IO[bytes], n_values: int, dtype: np.dtype[Any]) -> NDArray[np.floating]:
    array = np.empty(n_values, dtype)
    buffer = array.view(np.uint8)
    filled = 0
    while filled < len(buffer):
        read = file.readinto(buffer[filled : filled + BLOCK_BYTES])  # type: ignore[attr-defined]
        if not read:
            raise EOFError("less than its header announces")
        filled += read
    return array.astype(dtype.newbyteorder("="), copy=False)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], Shape, np.dtype[Any], bool]]:
    """The array's file behind its header; shape, dtype and whether it is in Fortran's order."""
    try:
        with zipfile.ZipFile(path) as archive:
            if f"{KEY}.npy" not in archive.namelist():
                names = ", ".join(name.removesuffix(".npy") for name in archive.namelist())
                raise _error("no probabilities", path, names or "an empty file", f"the key {KEY}")
            with archive.open(f"{KEY}.npy") as file:
                of_all, dtype, fortran = _header(path, file)
                if archive.getinfo(f"{KEY}.npy").file_size != file.tell() + prod(of_all) * dtype.itemsize:
                    raise ValueError(f"not as much as its header announces: {dtype} of shape {of_all}")
                yield file, of_all, dtype, fortran
    except UNREADABLE as error:
        found = error.strerror if isinstance(error, OSError) else error
        raise _error("probabilities that cannot be read", path, found, f"a whole npz file with {KEY}") from error


def _header(path: Path, file: IO[bytes]) -> tuple[Shape, np.dtype[Any], bool]:
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
    of_all, fortran, dtype = read(file)
    if len(of_all) != 4 or 0 in of_all or dtype.kind != "f":
        expected = "floating point numbers, (classes, Z, Y, X)"
        raise _error("no probabilities", path, f"{dtype} of shape {of_all}", expected)
    return of_all, dtype, fortran


def _error(what: str, path: Path, found: object, expected: str) -> SegpipeError:
    cure = "remove its folder softmax/ and give the same command again, or predict with --probabilities"
    return SegpipeError(problem(what, where=path, found=found, expected=expected, cure=cure))
