"""Preprocessed cases that another configuration or experiment has alike: one file on disk, with several names."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from segpipe import digest

ARRAYS = ("image.npy", "label.npy", "foreground.npy")


def record_of(folder: Path, case: str, wanted: str) -> dict[str, Any] | None:
    """The record of a case made of what has the wanted digest; None where a file is missing or of something else."""
    try:
        record: dict[str, Any] = digest.read_json(folder / f"{case}.json")
    except (FileNotFoundError, PermissionError):  # not looked for first: another job may remove it at any time
        return None
    whole = all((folder / f"{case}.{part}").exists() for part in ARRAYS)
    return record if whole and record["digest"] == wanted else None


def folders(own: Path, experiments: Sequence[str]) -> list[Path]:
    """Where cases may lie that are prepared alike: a cascade has those of 3d_fullres, and so has 2d where the slices
    lie as far apart as 3d_fullres resamples them; experiments with the same data may have any.

    own : data/preprocessed/<dataset>/<configuration>/cases; experiments : folders of them, with `*` for many
    """
    beside = [*own.parents[1].glob("*/cases"), *_of_experiments(experiments)]
    return [folder for folder in beside if folder.resolve() != own.resolve()]


def _of_experiments(experiments: Sequence[str]) -> Iterator[Path]:
    for pattern in experiments:
        yield from map(Path, sorted(glob.glob(f"{pattern}/data/preprocessed/*/*/cases")))


def link(own: Path, case: str, wanted: str, others: Sequence[Path]) -> bool:
    """Take the files of a case where one of the other folders has it with the wanted digest.

    Files are replaced, never written again, so both may have the same. While they are replaced their record is gone
    or another: the record is read when the arrays are linked, and only the wanted one is written beside them.
    """
    for folder in others:
        if record_of(folder, case, wanted):
            try:
                for part in ARRAYS:
                    digest.link(folder / f"{case}.{part}", own / f"{case}.{part}")
            except (FileNotFoundError, PermissionError):
                continue
            if record := record_of(folder, case, wanted):
                digest.write_json(own / f"{case}.json", record)
                return True
    return False
