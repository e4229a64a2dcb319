"""How the numbers of summary.json are called on the page, and how they are written."""

import re
from collections.abc import Iterable
from html import escape

KNOWN = {
    "hd95_mm": "HD95 [mm]",
    "assd_mm": "ASSD [mm]",
    "nsd": "NSD",
    "lesion_f1": "lesion F1",
    "volume_pred_ml": "predicted [ml]",
    "volume_ref_ml": "reference [ml]",
    "volume_difference_ml": "difference [ml]",
    "volume_difference_relative": "relative difference",
    "n_pred": "predicted [voxels]",
    "n_ref": "reference [voxels]",
}
COUNTS = ("FP", "TP", "FN", "TN", "n_pred", "n_ref", "lesions_tp", "lesions_fp", "lesions_fn")
DASH = "&ndash;"
LEGEND = (
    f"{DASH} where a number does not exist: Dice, IoU and NSD where neither prediction nor reference has the class, "
    "precision or recall where one of them has not, distances where either has not, volumes of a 2D image, any number "
    "of a class that a case has no annotations of. A mean leaves these out."
)


def of(metric: str) -> str:
    """A metric's name with its unit, `lesion F1` of lesion_f1, escaped."""
    if metric in KNOWN:
        return KNOWN[metric]
    words, unit = re.fullmatch(r"(.+?)(?:_(mm|ml|percent))?", metric).groups()  # type: ignore[union-attr]
    return escape(words.replace("_", " ") + (f" [{unit.replace('percent', '%')}]" if unit else ""))


def split(metrics: Iterable[str]) -> tuple[list[str], list[str]]:
    """(what is looked at, what lies behind it: volumes, counts of voxels and of lesions)."""
    names = list(metrics)
    behind = [name for name in names if name in COUNTS or name.startswith("volume_")]
    return [name for name in names if name not in behind], behind


def number(value: float | None, metric: str = "") -> str:
    """For people: hundredths of mm, three digits of ml, four digits after the point of shares."""
    if value is None:
        return DASH
    if metric in COUNTS or isinstance(value, int):
        return f"{value:.0f}" if float(value).is_integer() else f"{value:.1f}"
    if metric.endswith("_mm"):
        return f"{value:.2f}"
    if metric.endswith("_ml") and 0 < abs(value) < 100:
        return f"{value:#.3g}"
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:.2f}" if abs(value) < 1000 else f"{value:.0f}"


def cell(value: float | None, metric: str = "") -> str:
    """A number in a table."""
    shown = number(value, metric)
    sort = "" if value is None else f' data-v="{value:.9g}"'
    return f'<td class="n"{sort}>{shown}</td>'
