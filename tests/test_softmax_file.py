"""The saved softmax: what is written is read by numpy, what numpy writes is read; damage is named."""

import tracemalloc
import zipfile

import numpy as np
import pytest

from segpipe.errors import SegpipeError
from segpipe.inference import softmax_file

SHAPE = (3, 5, 7, 9)


def softmax(seed=0, shape=SHAPE, dtype=np.float32):
    powers = np.exp(5 * np.random.default_rng(seed).normal(size=shape))
    return (powers / powers.sum(0)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 40, 30), (2, 3, 700, 500)])
def test_numpy_reads_what_is_saved(tmp_path, dtype, shape):
    """One class, several blocks, blocks of several slices: always numpy's own rounding to the dtype."""
    given = softmax(shape=shape)
    softmax_file.save(tmp_path / "a.npz", given, dtype)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as content:
        assert list(content) == ["probabilities"]
        read = content["probabilities"]
    assert read.dtype == dtype
    assert np.array_equal(read, given.astype(dtype))
    assert np.array_equal(softmax_file.load(tmp_path / "a.npz"), read)
    assert zipfile.ZipFile(tmp_path / "a.npz").testzip() is None
    assert not [path for path in tmp_path.iterdir() if path.name != "a.npz"]


def test_arrays_that_are_not_contiguous_are_saved(tmp_path):
    given = softmax()
    for index, view in enumerate([given.transpose(0, 3, 1, 2), given[:, ::-1, :, 1::2], given.astype(">f4")]):
        path = tmp_path / f"{index}.npz"
        softmax_file.save(path, view, "float32")
        assert np.array_equal(np.load(path)["probabilities"], view)


def test_the_same_content_is_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        softmax_file.save(tmp_path / f"{name}.npz", softmax(), "float16")
    assert zipfile.ZipFile(tmp_path / "a.npz").infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_classes_as_they_come_are_the_same_file(tmp_path):
    softmax_file.save(tmp_path / "a.npz", softmax(), "float16")
    softmax_file.save_classes(tmp_path / "b.npz", (one for one in softmax()), SHAPE, "float16")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_what_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.npz"
    softmax_file.save(path, softmax(), "float16")
    before = path.read_bytes()

    def failing():
        yield softmax()[0]
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        softmax_file.save_classes(path, failing(), SHAPE, "float16")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_files_of_numpy_are_read_class_after_class(tmp_path, save, dtype):
    given = softmax(dtype=dtype)
    save(tmp_path / "a.npz", other=np.zeros(3), probabilities=given)
    assert softmax_file.shape(tmp_path / "a.npz") == SHAPE
    read = list(softmax_file.classes(tmp_path / "a.npz"))
    assert np.array_equal(read, given)
    assert all(one.dtype == np.dtype(dtype).newbyteorder("=") for one in read)
    assert np.array_equal(softmax_file.load(tmp_path / "a.npz"), given)


def test_an_array_in_the_order_of_fortran_is_read(tmp_path):
    """As nnU-Net writes a single region of a transposed image."""
    given = np.asfortranarray(softmax())
    np.savez_compressed(tmp_path / "a.npz", probabilities=given)
    assert np.array_equal(list(softmax_file.classes(tmp_path / "a.npz")), given)
    assert np.array_equal(softmax_file.load(tmp_path / "a.npz"), given)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_memory_is_one_class(tmp_path, dtype):
    """Of a memory-mapped array of 24 classes; numpy's arrays are what tracemalloc counts."""
    shape, path = (24, 16, 256, 256), tmp_path / "a.npz"
    np.save(tmp_path / "a.npy", np.zeros(shape, np.float32))
    one_class_bytes = 16 * 256 * 256 * 4
    tracemalloc.start()
    softmax_file.save(path, np.load(tmp_path / "a.npy", mmap_mode="r"), dtype)
    _, written = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    assert sum(1 for _ in softmax_file.classes(path)) == 24
    _, read = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert written < 2 * one_class_bytes
    assert read < 3 * one_class_bytes


def test_more_than_four_gigabytes_are_announced(tmp_path):
    """The sizes have the room that 4 GB and more need (zip64), before anybody knows how much comes."""
    softmax_file.save(tmp_path / "a.npz", softmax(), "float16")
    beginning = (tmp_path / "a.npz").read_bytes()[:30]
    needed = int.from_bytes(beginning[4:6], "little")
    assert needed == 45  # the version of the format that has them


def damaged(path, how):
    softmax_file.save(path, softmax(shape=(3, 20, 30, 40)), "float32")
    content = bytearray(path.read_bytes())
    if how == "truncated":
        del content[len(content) // 2 :]
    elif how == "empty":
        content.clear()
    else:
        content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "empty", "flipped"])
def test_damage_is_named(tmp_path, how):
    path = tmp_path / "a.npz"
    damaged(path, how)
    with pytest.raises(SegpipeError, match=r"(?s)cannot be read.*a\.npz.*cure"):
        softmax_file.load(path)
    with pytest.raises(SegpipeError, match="cannot be read"):
        list(softmax_file.classes(path))


def test_a_changed_value_is_noticed(tmp_path):
    """Of a file that decompresses well: the checksum is compared, also when the last class is the last thing read."""
    path, given = tmp_path / "a.npz", softmax()
    np.savez(path, probabilities=given)
    content = bytearray(path.read_bytes())
    content[content.index(given[2].tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(SegpipeError, match=r"(?s)cannot be read.*CRC"):
        softmax_file.load(path)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"softmax": softmax()}, "softmax"),
        ({}, "an empty file"),
        ({"probabilities": softmax()[0]}, r"float32 of shape \(5, 7, 9\)"),
        ({"probabilities": np.zeros((2, 0, 3, 3))}, r"float64 of shape \(2, 0"),
        ({"probabilities": np.zeros(SHAPE, np.uint8)}, "uint8 of shape"),
        ({"probabilities": np.full(SHAPE, None)}, "object of shape"),
    ],
)
def test_other_content_is_refused(tmp_path, given, found):
    np.savez(tmp_path / "a.npz", **given)
    for read in (softmax_file.load, softmax_file.shape, lambda path: next(softmax_file.classes(path))):
        with pytest.raises(SegpipeError, match=rf"no probabilities\n.*a\.npz\n.*found: +{found}"):
            read(tmp_path / "a.npz")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SegpipeError, match=r"a\.npz\n  found:    No such file"):
        softmax_file.load(tmp_path / "a.npz")


def test_a_header_that_announces_more_than_there_is_costs_no_memory(tmp_path):
    np.save(tmp_path / "a.npy", softmax())
    content = (tmp_path / "a.npy").read_bytes().replace(b"(3, 5, 7, 9), }         ", b"(3, 5, 7, 9999999999), }")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("probabilities.npy", content)
    with pytest.raises(SegpipeError, match="not as much as its header announces"):
        softmax_file.load(tmp_path / "a.npz")
