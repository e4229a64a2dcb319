"""`segpipe init FOLDER`."""

import argparse
import os
import shlex
from pathlib import Path
from typing import Any

from segpipe.digest import PACKAGE
from segpipe.errors import SegpipeError, problem, raise_all
from segpipe.experiments import new
from segpipe.params import PARAMS_FILE, parse
from segpipe.params.editing import on_one_line


def run(args: argparse.Namespace) -> None:
    """Make the experiment, say what differs and what to call.

    Raises SegpipeError with everything that is wrong.
    """
    given = _given(args)
    source = _source(args.source)
    try:
        changes = new.make(args.folder, source, given)
    except OSError as error:
        expected, cure = "a folder that can be made and written", "name another one"
        raise SegpipeError(
            problem("the experiment cannot be made", where=args.folder, found=error, expected=expected, cure=cure)
        ) from None
    print(f"{args.folder / PARAMS_FILE}: {source}" + (", but for" if changes else ""))
    for key, (before, after) in changes.items():
        print(f"  {key}: {on_one_line(after)}   (was {on_one_line(before)})")
    print(f"run it:   {_call(args.folder)}")
    if _experiments_only(args.folder.parent):
        print(f"compare:  segpipe compare {shlex.quote(os.fspath(args.folder.parent))}/*")


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Settings of the command line, by dotted key. Raises SegpipeError for all that is no YAML."""
    given, wrong = {} if args.dataset is None else {"dataset": args.dataset}, []
    for key, text in args.set:
        try:
            given[key] = parse(text, f"--set {key}")
        except SegpipeError:
            expected, cure = "YAML: 3, null, [0, 1], {a: 1}", "correct it, in quotes for the shell: 'folds=[0, 1]'"
            wrong.append(problem("not a value", where=f"--set {key}", found=text, expected=expected, cure=cure))
    raise_all(f"{args.folder} cannot be made", wrong)
    return given


def _experiments_only(folder: Path) -> bool:
    """Whether all that a shell's FOLDER/* finds can be compared."""
    return all((path / PARAMS_FILE).is_file() for path in folder.glob("[!.]*"))


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
