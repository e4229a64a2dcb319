"""Whether the raw files are still what the check read, whatever their dates say.

Snakemake looks at a file again when it is newer than what was made of it. One that is replaced by an older file (cp -p,
rsync -t, tar, a backup, git-annex) is not. So the check leaves beside cases.json when each file had been written; where
that is another time now, earlier or later, the content is read again and compared with what cases.json says.
"""

import contextlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from segpipe import digest, machine
from segpipe.data import dataset, image
from segpipe.errors import SegpipeError, problem

TABLES = ("dataset.json", "cases.tsv")  # what the check reads beside images and labels
Dates = list[list[int]]  # of each file of an image: bytes, and when content and status changed, in ns


def dates(root: Path) -> dict[str, Dates]:
    """Size and dates of the tables that are there, and of all images and labels that there should be, by path in the
    dataset's folder; none of what is missing.

    The change of the status is among the dates: nobody sets it, so a file with the size, the date and the inode of the
    one before it is another one all the same. Of a malformed dataset.json, which the check explains, the tables alone.
    """
    paths = [*TABLES]
    with contextlib.suppress(SegpipeError):
        described = dataset.describe(root)
        for case in (*described.training.values(), *described.test.values()):
            paths += [*case.images, *([case.label] if case.label else [])]
    return {path: found for path in dict.fromkeys(paths) if (found := _dates(root / path)) or path not in TABLES}


def _dates(path: Path) -> Dates:
    try:
        stats = [file.stat() for file in [path, *dataset.companions(path)]]
    except OSError:
        return []
    return [[stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for stat in stats]


def of_tables(root: Path) -> dict[str, str]:
    """Digests of the tables that are there."""
    return {path: found for path in TABLES if (found := _identity(root / path)) is not None}


def record(cases: Path, before: dict[str, Dates], tables: dict[str, str]) -> None:
    """Leave beside cases.json, which the check has just written, what it read.

    before, tables : dates, and digests of the tables, in this order and before the check read anything: what is edited
        meanwhile has other dates than these, or is what the check read
    """
    contents = {**_of_cases(cases), **tables}
    read = {path: [before[path], contents[path]] for path in contents if path in before}
    _write(cases, {"cases": digest.of_file(cases), "contents": contents, "read": read})


def changed(root: Path, cases: Path, say: Callable[[str], None]) -> list[str]:
    """The files that are not what the last successful check read, those that came and those that are gone.

    Contents are read only where size or dates are not those at which they were read last; `say` is told. Where a
    check left no such dates (cases.json was made elsewhere), files older than cases.json are taken for what it lists;
    where those are of another check (cases.json was brought back), the tables, of which it says nothing, count as
    changed. None without any check. Raises SegpipeError where cases.json is not what a check writes.
    """
    known = _known(cases)
    recorded, expected = known["read"], _expected(cases, known)
    if not expected:
        return []
    now = dates(root)
    if not recorded:
        known = _trusted(root, cases, now, expected)
        expected = known["contents"]
    found = {name: one[1] for name, one in known["read"].items() if one[0] == now.get(name)}
    unread = [name for name in now if now[name] and name not in found]
    if unread:
        say(f"{len(unread)} of {len(now)} raw files have other dates than when they were read: reading them")
        with ThreadPoolExecutor(machine.n_threads(None)) as pool:
            found |= zip(unread, pool.map(lambda name: _identity(root / name), unread), strict=True)
    read = known["read"] | {name: [now[name], one] for name, one in found.items() if one is not None}
    if read != recorded:
        with contextlib.suppress(OSError):  # somebody who may only look; the next call reads them again
            _write(cases, {**known, "read": read})
    return sorted({*expected, *now} - {name for name, one in expected.items() if one == found.get(name)})


def _known(cases: Path) -> dict[str, Any]:
    """What the last check left beside cases.json; nothing where that is absent or unreadable."""
    with contextlib.suppress(OSError, ValueError):
        known = digest.read_json(_record(cases))
        if isinstance(known, dict) and all(isinstance(known.get(key), dict) for key in ("contents", "read")):
            return known
    return {"contents": {}, "read": {}}


def _expected(cases: Path, known: dict[str, Any]) -> dict[str, str]:
    """What the files should hold: images and labels as cases.json says, if it is there, and the rest as recorded.

    A check that was killed has removed cases.json, and what was made of it is still there.
    """
    contents: dict[str, str] = known["contents"]
    if not cases.is_file():
        return contents
    of_same_check = known.get("cases") == digest.of_file(cases)
    tables = {path: found for path, found in contents.items() if path in TABLES} if of_same_check else {}
    return {**tables, **_of_cases(cases)}


def _trusted(root: Path, cases: Path, now: dict[str, Dates], expected: dict[str, str]) -> dict[str, Any]:
    """A record for a cases.json without one. Tables count as they are: Snakemake sees newer ones by itself."""
    written_ns = cases.stat().st_mtime_ns
    contents = {**expected, **of_tables(root)}
    old = [path for path, found in now.items() if path in TABLES or all(one[1] <= written_ns for one in found)]
    read = {path: [now[path], contents[path]] for path in old if path in contents}
    return {"cases": digest.of_file(cases), "contents": contents, "read": read}


def _of_cases(cases: Path) -> dict[str, str]:
    """Digests of all images and labels."""
    try:
        content = digest.read_json(cases)
        entries = [*content["training"].values(), *content["test"].values()]
        return {path: found for one in entries for path, found in {**one["images"], **(one["label"] or {})}.items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        found, expected = f"{type(error).__name__}: {error}", "the list of cases, as the check writes it"
        cure = f"delete {cases}; the next call checks the dataset anew"
        what = "cases.json is damaged"
        raise SegpipeError(problem(what, where=cases, found=found, expected=expected, cure=cure)) from None


def _identity(path: Path) -> str | None:
    """None of what cannot be read, which the check explains."""
    try:
        return digest.of_file(path) if path.name in TABLES else image.identity(path)
    except (SegpipeError, OSError, ValueError):
        return None


def _record(cases: Path) -> Path:
    return cases.parent / "state" / "raw_files.json"


def _write(cases: Path, content: dict[str, Any]) -> None:
    digest.write_text(_record(cases), json.dumps(content) + "\n")
