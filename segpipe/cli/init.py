"""`segpipe init FOLDER`."""

import argparse
import os
import shlex
from pathlib import Path
from typing import Any

from segpipe.digest import PACKAGE
from segpipe.experiments import new
from segpipe.params import PARAMS_FILE, parse


def run(args: argparse.Namespace) -> None:
    """Make the experiment, say what differs and what to call.

    Raises SegpipeError with everything that is wrong.
    """
    given = {key: parse(text, f"--set {key}") for key, text in args.set}
    if args.dataset is not None:
        given = {"dataset": args.dataset, **given}
    source = _source(args.source)
    changes = new.make(args.folder, source, given)
    print(f"{args.folder / PARAMS_FILE}: {source}" + (", but for" if changes else ""))
    for key, (before, after) in changes.items():
        print(f"  {key}: {_shown(after)}   (was {_shown(before)})")
    print(f"run it:   {_call(args.folder)}")
    print(f"compare:  segpipe compare {shlex.quote(os.fspath(args.folder.parent))}/*")


def _source(given: Path | None) -> Path:
    """What the new one starts from: params.yaml here, or of the project that segpipe was installed from."""
    if given is not None:
        return given / PARAMS_FILE if given.is_dir() else given
    installed_from = PACKAGE.parent / PARAMS_FILE
    return installed_from if not PARAMS_FILE.exists() and installed_from.exists() else PARAMS_FILE


def _call(folder: Path) -> str:
    """Of Snakemake, whose rules are no part of an installed package, but of a clone."""
    call = f"snakemake --cores all --directory {shlex.quote(os.fspath(folder))}"
    rules = PACKAGE.parent / "Snakefile"
    if Path("Snakefile").exists():
        return call
    if rules.exists():
        return f"{call} --snakefile {shlex.quote(os.fspath(rules))}"
    return f"{call} --snakefile CLONE/Snakefile, where CLONE is a clone of segpipe"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
