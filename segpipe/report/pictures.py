"""Cases in pictures: validation cases in three planes, test cases as thumbnails with their volumes."""

from collections import defaultdict
from collections.abc import Iterator
from html import escape

import numpy as np

from segpipe.data import check_picture, image
from segpipe.data.labels import Labels
from segpipe.data.page_parts import class_name, data_uri
from segpipe.report import names, outlines, overlays, tables, volumes
from segpipe.report.results import Case, Results

MIN_CASES = 8  # fewer training cases have no usual volume that another could be far from
SWITCHES = """<p class="keys"><label><input type="checkbox" id="show-prediction" checked> prediction
<svg class="sample" viewBox="0 0 30 8"><path class="prediction" d="M0 4H30"></path></svg></label>
<label><input type="checkbox" id="show-reference" checked> reference
<svg class="sample" viewBox="0 0 30 8"><path class="reference" d="M0 4H30"></path></svg></label></p>"""


def chosen(cases: list[Case], n: int) -> list[tuple[str, Case]]:
    """(what it is, case) of n cases at even distances between the worst and the best, those with a Dice."""
    ranked = [case for case in cases if case.dice is not None]
    ranks = sorted({round(rank) for rank in np.linspace(0, len(ranked) - 1, n)}) if ranked else []
    return [(_rank_name(rank, len(ranked)), ranked[rank]) for rank in ranks]


def _rank_name(rank: int, n: int) -> str:
    if rank in (0, n - 1):
        return "worst" if rank == 0 else "best"
    return "median" if rank == round((n - 1) / 2) else f"rank {rank + 1} of {n}, from the worst"


def validated(results: Results) -> Iterator[str]:
    """Overlays of the chosen validation cases."""
    yield SWITCHES
    yield legend(results.cases.labels)
    yield '<p class="quiet">Planes through the place where most is wrong; segmentations before postprocessing.</p>'
    for what, case in chosen(results.validated, results.params.report.cases):
        yield _overlay(results, what, case)


def legend(labels: Labels) -> str:
    """The classes with their colours."""
    return f'<p class="keys">{" ".join(f"<span>{class_name(name, labels)}</span>" for name in labels.foreground)}</p>'


def _overlay(results: Results, what: str, case: Case) -> str:
    cases, labels = results.cases, results.cases.labels
    volume, predicted = cases.read_image(case.name), cases.read_segmentation(case.prediction)
    dice = ", ".join(
        f"{escape(name)} {names.number(case.metrics[labels.key(name)]['Dice'])}" for name in labels.foreground
    )
    title = f"{what}: {escape(case.name)}"
    drawn = overlays.planes(volume, predicted, cases.read_label(case.name), labels, cases.annotated(case.name))
    planes = "".join(
        f"<figure>{outlines.svg(plane, f'{title}, {name}')}<figcaption>{name}</figcaption></figure>"
        for name, plane in drawn
    )
    said = f"<b>{title}</b>, Dice {names.number(case.dice)} ({dice}; fold {escape(case.fold)})"
    return f'<div class="case"><p>{said}</p><div class="planes">{planes}</div></div>'


# test cases


def unusual(rows: list[volumes.Row], mads: float) -> dict[tuple[str, str], str]:
    """What is odd with the volume of a class in a test prediction, by (case, class).

    Far from the median of the training labels that have the class, in median absolute deviations of the logarithm; or
    none at all of a class that every training label has.
    """
    usual, found = defaultdict(list), {}
    for row in rows:
        if row["split"] == volumes.LABEL:
            usual[row["class"]].append(_size(row))
    for row in rows:
        known = usual[row["class"]]
        if row["split"] == volumes.TEST and len(known) >= MIN_CASES and (said := _unusual(_size(row), known, mads)):
            found[row["case"], row["class"]] = said
    return found


def _size(row: volumes.Row) -> float:
    """In ml; in voxels of a 2D image."""
    return float(row["volume_ml"] or row["voxels"])


def _unusual(size: float, known: list[float], mads: float) -> str:
    present = np.log([one for one in known if one > 0])
    if size == 0 or not present.size:
        return "missing" if size == 0 and len(present) == len(known) else ""
    middle = float(np.median(present))
    deviation = max(1.4826 * float(np.median(np.abs(present - middle))), 0.05)
    if abs(np.log(size) - middle) <= mads * deviation:
        return ""
    low, high = np.exp([middle - mads * deviation, middle + mads * deviation])
    return f"usually {_readable(float(low))} to {_readable(float(high))}"


def _readable(size: float) -> str:
    """ml or voxels."""
    return f"{size:.3g}" if size < 100 else f"{size:.0f}"


def predicted(results: Results) -> Iterator[str]:
    """Thumbnails of test cases, those with unusual volumes first, and a table of the volumes of all."""
    settings = results.params.report
    odd = unusual(results.volumes, settings.outlier_mads)
    suspicious = {case for case, _ in odd}
    ordered = sorted(results.cases.test, key=lambda case: (case not in suspicious, case))
    yield (
        f"<p>{len(ordered)} cases; {len(suspicious) or 'none'} with an unusual volume: further than "
        f"{settings.outlier_mads:g} median absolute deviations (of logarithms) from the training labels' median.</p>"
    )
    yield legend(results.cases.labels)
    thumbnails = (_thumbnail(results, case, odd) for case in ordered[: settings.test_cases])
    yield f'<div class="planes">{"".join(thumbnails)}</div>'
    yield _volumes(results, ordered, odd)


def _thumbnail(results: Results, case: str, odd: dict[tuple[str, str], str]) -> str:
    cases = results.cases
    assert results.predictions is not None  # asked for where there are some
    label = image.read_label(results.predictions / f"{case}{cases.label_ending}", cases.orientation)
    picture = check_picture.png(cases.read_image(case), label, cases.labels)
    mark = ' <span class="warning">unusual</span>' if any(one == case for one, _ in odd) else ""
    return (
        f'<figure><img alt="{escape(case)}" src="{data_uri(picture)}">'
        f"<figcaption>{escape(case)}{mark}</figcaption></figure>"
    )


def _volumes(results: Results, ordered: list[str], odd: dict[tuple[str, str], str]) -> str:
    found = {(row["case"], row["class"]): row for row in results.volumes if row["split"] == volumes.TEST}
    classes = [*results.cases.labels.foreground]
    unit = "ml" if any(row["volume_ml"] for row in found.values()) else "voxels"

    def cell(case: str, name: str) -> str:
        said = odd.get((case, name))
        note = f'<br><small class="warning">{escape(said)}</small>' if said else ""
        size = _size(found[case, name])
        return f'<td class="n" data-v="{size:.9g}">{_readable(size)}{note}</td>'

    rows = (f"<td>{escape(case)}</td>{''.join(cell(case, name) for name in classes)}" for case in ordered)
    head = ["case", *(f"{class_name(name, results.cases.labels)} [{unit}]" for name in classes)]
    return tables.wide(head, rows, "numbers sortable")
