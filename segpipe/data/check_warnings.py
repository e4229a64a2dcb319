"""What may be wrong with a dataset that can be used: reported, never in the way."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segpipe.data import dataset
from segpipe.data.check_facts import Facts
from segpipe.data.dataset import Description
from segpipe.data.labels import IGNORE
from segpipe.params import Check

ROUNDING_MM = 1e-3
MIN_CASES = 8  # fewer have no usual value that another could be far from
TIFF = (".tif", ".tiff")
NAMED = 3  # files in a warning that concerns the dataset
SMALLEST_SCALE = 0.05  # of the usual spread or spacing: a set of equal cases has no deviation to count in


@dataclass(frozen=True)
class Notice:
    """One warning.

    what : its kind, the same for every case that it concerns
    case : None where it concerns the dataset
    """

    what: str
    case: str | None
    detail: str


def notices(root: Path, facts: Mapping[str, Facts], description: Description, settings: Check) -> list[Notice]:
    """Every warning, by kind; `facts` of the cases whose files could be read."""
    return [
        *_of_reader(description, settings),
        *_of_unknown_spacings(root, facts, description),
        *_of_classes(facts, description),
        *_of_orientations(facts, settings),
        *(Notice(what, case, detail) for case, one in facts.items() for what, detail in _of_case(one, settings)),
        *_of_copies(facts, description),
        *_of_intensities(facts, description, settings),
        *_of_spacings(facts, settings),
    ]


# nnU-Net's readers, and what becomes of them here: the format of a file is seen from the file itself
SAME_READERS = ("SimpleITKIO", "NibabelIO", "NaturalImage2DIO", "Tiff3DIO")
TURNING_READERS = ("NibabelIOWithReorient", "SimpleITKIOWithReorient")


def _of_reader(description: Description, settings: Check) -> Iterator[Notice]:
    reader = description.reader
    if reader in TURNING_READERS and settings.orientation == "as-stored":
        detail = f"dataset.json asks for {reader}, which turns the axes to RAS: set check.orientation to RAS"
        yield Notice("another reader", None, f"{detail}; now they stay as stored")
    elif reader is not None and reader not in (*SAME_READERS, *TURNING_READERS):
        detail = f"dataset.json asks for {reader}, which is unknown: the files are read by their format"
        yield Notice("another reader", None, f"{detail}, axes {settings.orientation}")


def _of_unknown_spacings(root: Path, facts: Mapping[str, Facts], description: Description) -> Iterator[Notice]:
    """TIFF stacks without the file that says their spacing. Pixels of a 2D image have no size, as in a photograph."""
    files = [
        path
        for case, one in (description.training | description.test).items()
        if case in facts and not facts[case].is_2d
        for path in [*one.images, *([one.label] if one.label else [])]
        if Path(path).suffix.lower() in TIFF and not dataset.companions(root / path)
    ]
    if files:
        shown = ", ".join(files[:NAMED]) + (" ..." if len(files) > NAMED else "")
        cure = f'write {{"spacing": [z, y, x]}}, in mm, into {Path(files[0]).with_suffix(".json")} and so on'
        detail = f"{len(files)} TIFF stacks have no file with it beside them: {shown}; taken as 1 mm along each axis"
        yield Notice("unknown spacing", None, f"{detail}; {cure}, or all distances and volumes are in voxels")


def _of_classes(facts: Mapping[str, Facts], description: Description) -> Iterator[Notice]:
    counted = [one.voxels for one in facts.values() if one.voxels is not None]
    for name in description.labels.foreground:
        if counted and not any(voxels[name] for voxels in counted):
            yield Notice("a class without voxels", None, f"no case has a voxel of {name}: it cannot be learnt")


def _of_orientations(facts: Mapping[str, Facts], settings: Check) -> Iterator[Notice]:
    found = defaultdict(list)
    for case, one in facts.items():
        if not one.is_2d:
            found[one.orientation].append(case)
    if len(found) > 1:
        shares = ", ".join(
            f"{code} {len(cases)}" for code, cases in sorted(found.items(), key=lambda item: -len(item[1]))
        )
        now = "turned to RAS" if settings.orientation == "RAS" else "as stored; check.orientation: RAS turns them"
        yield Notice("mixed orientations", None, f"axes X, Y, Z lead to {shares} (cases); they are read {now}")


def _of_case(one: Facts, settings: Check) -> Iterator[tuple[str, str]]:
    """(what, detail) of a case by itself."""
    if one.voxels is not None and not any(count for name, count in one.voxels.items() if name != IGNORE):
        yield "empty label", "no voxel of any class"
    if one.outside_percent > settings.outside_percent:
        yield "label outside the image", f"{one.outside_percent:.1f} % of its voxels lie in the padding"
    if one.offset_mm > ROUNDING_MM:
        yield "grids that are not quite the same", f"corners up to {one.offset_mm:.2g} mm apart, which is tolerated"
    for number, channel in enumerate(one.channels):
        if channel.constant:
            yield "constant image", f"channel {number} is {channel.levels[1]:.4g} everywhere"
        # the colours of a gray photograph, in one file, are equal by their nature
        twins = [
            n for n, other in enumerate(one.channels) if other.content == channel.content and other.file != channel.file
        ]
        if twins and number < min(twins):
            yield "equal channels", f"channels {', '.join(map(str, [number, *twins]))} have the same voxels"


def _of_copies(facts: Mapping[str, Facts], description: Description) -> Iterator[Notice]:
    by_content = defaultdict(list)
    for case, one in facts.items():
        by_content[one.content].append(case)
    for case, one in facts.items():
        others = [_named(other, description) for other in by_content[one.content] if other != case]
        if others:
            here = "" if case in description.training else "a test case, "
            yield Notice("the same image under two ids", case, f"{here}the same voxels as {', '.join(others)}")


def _named(case: str, description: Description) -> str:
    return case if case in description.training else f"{case} (test)"


def _of_intensities(facts: Mapping[str, Facts], description: Description, settings: Check) -> Iterator[Notice]:
    """At most one warning per case, of all channels."""
    found = defaultdict(list)
    for number, name in enumerate(description.channel_names):
        levels = {case: one.channels[number].levels for case, one in facts.items() if number < len(one.channels)}
        spread = {case: high - low for case, (low, _, high) in levels.items()}
        usual = SMALLEST_SCALE * float(np.median([*spread.values()])) if spread else 0.0
        measures = {"median": {case: level[1] for case, level in levels.items()}, "5 to 95 % range": spread}
        for measure, values in measures.items():
            for case, detail in _outliers(values, usual, settings).items():
                found[case].append(f"{measure} of {name} {detail}")
    for case, details in found.items():
        yield Notice("unusual intensities", case, "; ".join(details))


def _of_spacings(facts: Mapping[str, Facts], settings: Check) -> Iterator[Notice]:
    for axis, letter in enumerate("ZYX"):
        values = {case: one.spacing_mm[axis] for case, one in facts.items()}
        usual = SMALLEST_SCALE * float(np.median([*values.values()])) if values else 0.0
        for case, detail in _outliers(values, usual, settings).items():
            yield Notice("unusual spacing", case, f"{detail} mm along {letter}")


def _outliers(values: Mapping[str, float], smallest_scale: float, settings: Check) -> dict[str, str]:
    """Cases far from the median of all, in median absolute deviations (times 1.4826: a normal distribution's sigma)."""
    if len(values) < MIN_CASES:
        return {}
    middle = float(np.median([*values.values()]))
    deviation = 1.4826 * float(np.median([abs(value - middle) for value in values.values()]))
    limit = settings.outlier_mads * max(deviation, smallest_scale)
    return {
        case: f"{value:.4g} (usually {middle:.4g}, deviation {deviation:.2g})"
        for case, value in values.items()
        if abs(value - middle) > limit
    }
