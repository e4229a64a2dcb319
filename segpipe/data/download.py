"""Downloading a task of the Medical Segmentation Decathlon: checksum, resume, retries.

The archive grows beside the dataset's folder as .TaskNN_Name.tar.part, which outlives a job that is killed; the folder
appears when the archive is whole, has the right checksum and is unpacked.
"""

import hashlib
import http
import http.client
import re
import time
import urllib.error
import urllib.request
from logging import getLogger
from pathlib import Path
from typing import IO

from segpipe import digest
from segpipe.data import msd
from segpipe.errors import SegpipeError, problem
from segpipe.params import Download

log = getLogger(__name__)

# MD5 of the archives, as MONAI has them (monai/apps/datasets.py).
CHECKSUMS = {
    "Task01_BrainTumour": "240a19d752f0d9e9101544901065d872",
    "Task02_Heart": "06ee59366e1e5124267b774dbd654057",
    "Task03_Liver": "a90ec6c4aa7f6a3d087205e23d4e6397",
    "Task04_Hippocampus": "9d24dba78a72977dbd1d2e110310f31b",
    "Task05_Prostate": "35138f08b1efaef89d7424d2bcc928db",
    "Task06_Lung": "8afd997733c7fc0432f71255ba4e52dc",
    "Task07_Pancreas": "4f7080cfca169fa8066d17ce6eb061e4",
    "Task08_HepaticVessel": "641d79e80ec66453921d997fbf12a29c",
    "Task09_Spleen": "410d4a301da4e5b2f6f86ec3ddba524e",
    "Task10_Colon": "bad7a188931dc2f6acf72b08eb6202d0",
}
RECORD = (
    ".downloaded.json"  # what the download left: its presence, and equality, says that nobody has changed the files
)
BLOCK = 1 << 20
TIMEOUT_S = 60.0
REPORT_S = 10.0
WAITS_S = (1, 2, 4, 8, 16, 32)  # between attempts that bring nothing; any progress starts anew


def checksums(settings: Download) -> dict[str, str]:
    """MD5 of the archive, by task, of all that can be downloaded."""
    return settings.md5 if settings.md5 is not None else CHECKSUMS


def is_missing(folder: Path, settings: Download) -> bool:
    """Whether this is the folder of a task that can be downloaded, data/raw/TaskNN_Name, and holds nothing."""
    known = folder.parent.as_posix() == "data/raw" and folder.name in checksums(settings)
    return known and not (folder.is_dir() and any(folder.iterdir()))


def is_untouched(folder: Path) -> bool:
    """Whether the folder holds what was downloaded, and nothing else; dataset.json does not count."""
    record = folder / RECORD
    return record.is_file() and digest.read_json(record) == _listing(folder)


def download(folder: Path, settings: Download, waits_s: tuple[float, ...] = WAITS_S) -> None:
    """Download and unpack the task that the folder is called after. A later call goes on where this one was ended.

    Raises SegpipeError where the server has no such file or does not answer, or what it sends has another checksum.
    """
    task = folder.name
    part = folder.with_name(f".{task}.tar.part")
    with digest.exclusive(folder.with_name(f".{task}.lock"), f"download of {task}"):
        if is_untouched(folder):
            return
        _fetch(f"{settings.url.rstrip('/')}/{task}.tar", part, checksums(settings)[task], waits_s)
        log.info("unpacking %s", task)
        with digest.new_folder(folder) as new:
            unpacked = msd.unpack(part, new)
            for item in list(unpacked.iterdir()):
                item.rename(new / item.name)
            unpacked.rmdir()
            digest.write_json(new / RECORD, _listing(new))
        part.unlink()
    tests = len(list((folder / "imagesTs").glob("*")))
    log.info("%s is complete%s", folder, f"; the next call predicts its {tests} test images" if tests else "")


def _listing(folder: Path) -> dict[str, list[int]]:
    """Size and time of every file, by path; but of dataset.json, which Snakemake touches, and notices itself."""
    files = {path.relative_to(folder).as_posix(): path.stat() for path in folder.rglob("*") if path.is_file()}
    ours = (RECORD, "dataset.json")
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in sorted(files.items()) if name not in ours}


def _fetch(url: str, part: Path, md5: str, waits_s: tuple[float, ...]) -> None:
    """Complete the partial file. One that was begun earlier and turns out wrong is begun anew, once."""
    begun = part.exists()
    _complete(url, part, waits_s)
    if (found := _md5(part)) == md5:
        return
    part.unlink()
    if begun:
        log.warning("%s: the part of an earlier download was wrong; starting anew", url)
        return _fetch(url, part, md5, waits_s)
    raise SegpipeError(
        problem(
            "another checksum",
            where=url,
            found=f"md5 {found}",
            expected=f"md5 {md5}",
            cure="try again, or another download.url; download.md5 for archives of your own",
        )
    )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _complete(url: str, part: Path, waits_s: tuple[float, ...]) -> None:
    """Append until the file is as long as the server says, however often the connection breaks."""
    waits = iter(waits_s)
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _append(url, part, before):
                return
            failure: object = "the connection was closed"
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise _unavailable(url, error) from None
            failure = error
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            failure = error
        if part.exists() and part.stat().st_size > before:
            waits = iter(waits_s)
        wait_s = next(waits, None)
        if wait_s is None:
            raise _unavailable(url, failure)
        log.info("%s: %s; trying again in %g s", url, failure, wait_s)
        time.sleep(wait_s)


def _unavailable(url: str, found: object) -> SegpipeError:
    return SegpipeError(
        problem(
            "the download failed",
            where=url,
            found=found,
            expected="the archive of the task",
            cure="check the network and download.url in params.yaml; what has come is kept",
        )
    )


def _append(url: str, part: Path, start: int) -> bool:
    """Ask for what is missing and write it; whether the file is complete then.

    A server that ignores the range sends everything: the file is begun anew.
    """
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return True  # nothing is missing; the checksum will tell
        raise
    with response:
        offset, total = _span(response)
        if offset not in (0, start):
            raise http.client.HTTPException(f"a range from byte {offset}, where {start} was asked for")
        with part.open("ab" if offset else "wb") as file:
            _copy(response, file, url, total)
            return total is None or file.tell() == total


def _span(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Where in the file the answer begins, and how long the file is, in bytes; None where it is not said."""
    partial = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if response.status == http.HTTPStatus.PARTIAL_CONTENT and partial:
        return int(partial[1]), int(partial[2])
    length = response.headers.get("Content-Length")
    return 0, int(length) if length else None


def _copy(response: http.client.HTTPResponse, file: IO[bytes], name: str, total: int | None) -> None:
    """Write what comes, and say now and then how far it is."""
    of_total = f" of {total / 1e6:.0f}" if total else ""
    said = time.monotonic()
    if file.tell():
        log.info("%s: going on after %.0f%s MB", name, file.tell() / 1e6, of_total)
    while block := response.read(BLOCK):
        file.write(block)
        if time.monotonic() - said > REPORT_S:
            said = time.monotonic()
            log.info("%s: %.0f%s MB", name, file.tell() / 1e6, of_total)
    log.info("%s: %.0f%s MB", name, file.tell() / 1e6, of_total)
