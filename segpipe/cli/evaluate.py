"""`segpipe evaluate PRED REF`."""

import argparse
from collections.abc import Mapping
from typing import Any

from segpipe import digest
from segpipe.cli.outcome import require_file
from segpipe.cli.settings import load_params
from segpipe.data import dataset_json
from segpipe.evaluation import files

# What the table shows: heading, metric, decimals.
COLUMNS = (
    ("Dice", "Dice", 4),
    ("IoU", "IoU", 4),
    ("precision", "precision", 4),
    ("recall", "recall", 4),
    ("HD95 mm", "hd95_mm", 2),
    ("ASSD mm", "assd_mm", 2),
    ("NSD", "nsd", 4),
    ("volume diff. ml", "volume_difference_ml", 2),
    ("lesion F1", "lesion_f1", 4),
)


def run(args: argparse.Namespace) -> None:
    """Score the label maps, print the means, write what is asked for.

    Raises SegpipeError with all problems of the files.
    """
    params = load_params(args)
    settings = params.evaluate
    if args.nsd_tolerance_mm is not None:
        settings = settings.model_copy(update={"nsd_tolerance_mm": args.nsd_tolerance_mm})
    labels = dataset_json.classes(args.labels.parent, dataset_json.read(args.labels)) if args.labels else None
    of_table = args.cases, params.splits.group
    way = files.Way(labels, settings, params.check.geometry_tolerance_mm, *of_table, args.threads)
    for path in (args.out, args.csv):
        require_file(path)
    content = files.evaluate(args.prediction, args.reference, way, args.only_predicted)
    if args.out:
        digest.write_json(args.out, content)
    if args.csv:
        files.write_csv(args.csv, content)
    print(_table(content))


def _table(content: Mapping[str, Any]) -> str:
    """Means of every class and of the foreground, and the interval of the latter's."""
    level, foreground = content["confidence"]["level"], content["foreground_mean"]
    between = content["confidence"]["foreground_mean"]
    rows = [["class", *(heading for heading, *_ in COLUMNS)]]
    rows += [[key, *_shown(means)] for key, means in content["mean"].items()]
    rows.append(["foreground", *_shown(foreground)])
    for end, share in (("low", (1 - level) / 2), ("high", (1 + level) / 2)):
        ends = {name: interval and interval[end] for name, interval in between.items()}
        rows.append([f"  {100 * share:g} %", *_shown(ends)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    n_cases, drawn = len(content["metric_per_case"]), content["confidence"]
    patients = f", intervals over {drawn['n_resampled']} {drawn['resampled']}" if content["groups"] else ""
    return "\n".join([*lines, f"means over {n_cases} cases{patients}"])


def _shown(numbers: Mapping[str, float | None]) -> list[str]:
    values = [(numbers[name], decimals) for _, name, decimals in COLUMNS]
    return ["-" if value is None else f"{value:.{decimals}f}" for value, decimals in values]
