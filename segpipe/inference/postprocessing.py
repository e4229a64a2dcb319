"""Rules that better segmentations, learnt on the cross-validation: postprocessing.json.

Tried are: the largest component of all foreground; then, of each class, the largest component, components of a minimum
size, and both. A rule is kept where the mean Dice rises and that of no class falls: of all foreground as in nnU-Net
(nnunetv2/postprocessing/remove_connected_components.py), minimum sizes beyond it. Regions may overlap, so they are
tried one after the other, each on what the rules before left; plain classes are independent of each other.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe import digest
from segpipe.data.cases import Cases
from segpipe.data.formats.grid import SLICE_THICKNESS_2D
from segpipe.evaluation.overlap import Numbers, case_overlap
from segpipe.inference import mean_softmax, postprocess
from segpipe.inference.kept import Kept
from segpipe.inference.postprocess import Components, Rule
from segpipe.params import Postprocess

log = getLogger(__name__)

Dice = dict[str, float | None]  # by the class's name in summary.json
COUNTS = ("TP", "FP", "FN")


@dataclass(frozen=True)
class Segmented:
    """The cases of a cross-validation.

    files : the segmentation of each case
    threads : None for all that the process has
    kept : what has been worked out of each case
    """

    cases: Cases
    files: Mapping[str, Path]
    threads: int | None
    kept: Kept

    def each(self, part: str, work: Callable[[str], Any], file: Callable[[str], Path] | None = None) -> list[Any]:
        """What a function says of every case, several at once; see `Kept.each`."""
        shapes = [self.cases.entry(case)["shape"] for case in self.files]
        return self.kept.each(part, list(self.files), work, mean_softmax.at_once(shapes, self.threads), file)

    def spacing_mm(self, case: str) -> list[float]:
        """(Z, Y, X)."""
        return list(self.cases.entry(case)["spacing_mm"])

    def read(self, case: str, rules: Sequence[Rule]) -> NDArray[np.int16]:
        """The segmentation of a case, after some rules."""
        segmentation = self.cases.read_segmentation(self.files[case])
        return postprocess.apply(segmentation, self.cases.labels, rules, self.spacing_mm(case))


def learn(of: Segmented, settings: Postprocess) -> tuple[list[Rule], list[dict[str, Any]]]:
    """The rules that are kept, and all that were tried with the Dice before and after, as plain data."""
    kept: list[Rule] = []
    tried: list[dict[str, Any]] = []
    for stage in _stages(of, settings):
        before, after = _scores(of, kept, stage)
        for of_one in _grouped(stage):
            better = [rule for rule in of_one if _is_better(after[rule], before)]
            best = max(better, key=lambda rule: _mean(after[rule].values()) or 0, default=None)
            tried += [_listed(rule, before, after[rule], rule is best) for rule in of_one]
            if best is not None:
                log.info("kept: %s", best)
                kept.append(best)
    return kept, tried


def _stages(of: Segmented, settings: Postprocess) -> Iterator[list[Rule]]:
    """Rules that may be tried at once: those of a stage do not depend on each other."""
    if settings.largest_component:
        yield [Rule(None, largest_component=True)]
    of_classes = [_of_class(name, of, settings) for name in of.cases.labels.foreground]
    if of.cases.labels.has_regions:
        yield from of_classes
    else:
        yield [rule for rules in of_classes for rule in rules]


def _of_class(name: str, of: Segmented, settings: Postprocess) -> list[Rule]:
    in_2d = any(_is_2d(of.spacing_mm(case)) for case in of.files)
    unit = "minimum_voxels" if in_2d else "minimum_ml"
    minima = [{}, *({unit: size} for size in getattr(settings, unit))]
    largest = [True, False] if settings.largest_component else [False]
    return [Rule(name, alone, **least) for alone, least in product(largest, minima) if alone or least]


def _is_2d(spacing_mm: Sequence[float]) -> bool:
    """Whether a case is a slice whose thickness means nothing."""
    return bool(np.isclose(spacing_mm[0], SLICE_THICKNESS_2D * max(spacing_mm[1:])))


def _grouped(stage: Sequence[Rule]) -> list[list[Rule]]:
    """The rules of each class."""
    return [[rule for rule in stage if rule.of == name] for name in dict.fromkeys(rule.of for rule in stage)]


def _scores(of: Segmented, kept: Sequence[Rule], stage: Sequence[Rule]) -> tuple[Dice, dict[Rule, Dice]]:
    """The mean Dice of each class after the kept rules, and after each rule of the stage in addition."""
    # what a stage says follows from the rules before it, too
    part = f"stage_{digest.of([[postprocess.to_json(rule) for rule in rules] for rules in (kept, stage)])}"
    scored = of.each(part, lambda case: _score(of, case, kept, stage))
    before = _means([dice for dice, _ in scored])
    changed = {rule: _changed([(dice, changes[index]) for dice, changes in scored]) for index, rule in enumerate(stage)}
    return before, {rule: {**before, **means} for rule, means in changed.items()}


def _score(of: Segmented, case: str, kept: Sequence[Rule], stage: Sequence[Rule]) -> tuple[Dice, list[Dice]]:
    """The Dice of a case before, and of each rule of the stage that of the classes that it changes alone: of a hundred
    classes there are many rules, and nearly all Dice are as before. Counted is without the voxels that a rule removes.
    """
    cases, labels, spacing_mm = of.cases, of.cases.labels, of.spacing_mm(case)
    segmentation, reference = of.read(case, kept), cases.read_label(case)
    counts = case_overlap(segmentation, reference, labels, cases.annotated(case))
    before = {key: numbers["Dice"] for key, numbers in counts.items()}
    boxes = postprocess.boxes(segmentation)
    after: dict[Rule, Dice] = {}
    for rules in _grouped(stage):
        components = Components.of(segmentation, postprocess.values_of(rules[0], labels), boxes)
        predicted, true = segmentation[components.box], reference[components.box]
        for rule in rules:
            gone = components.removed(rule, spacing_mm)
            lost = case_overlap(predicted[gone], true[gone], labels, cases.annotated(case)) if gone.any() else {}
            dice = {key: _without(counts[key], numbers) for key, numbers in lost.items()}
            after[rule] = {key: value for key, value in dice.items() if value != before[key]}
    return before, [after[rule] for rule in stage]


def _without(numbers: Numbers, lost: Numbers) -> float | None:
    """The Dice of a class when some voxels of its prediction are gone; None of one that nobody annotated."""
    tp, fp, fn = (numbers[name] for name in COUNTS)
    lost_tp, lost_fp = lost["TP"], lost["FP"]
    if tp is None or fp is None or fn is None or lost_tp is None or lost_fp is None:
        return None
    both = 2 * (tp - lost_tp)
    all_ = both + fp - lost_fp + fn + lost_tp
    return both / all_ if all_ else None


def _changed(cases: Sequence[tuple[Dice, Dice]]) -> Dice:
    """The means of the classes that a rule changes in any case; cases : the Dice before, and what is changed of it."""
    keys = dict.fromkeys(key for _, changes in cases for key in changes)
    return _means([{key: changes.get(key, before[key]) for key in keys} for before, changes in cases])


def _means(cases: Sequence[Dice]) -> Dice:
    return {key: _mean(case[key] for case in cases) for key in cases[0]}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _is_better(after: Dice, before: Dice) -> bool:
    means = _mean(after.values()), _mean(before.values())
    if means[0] is None or means[1] is None or means[0] <= means[1]:
        return False
    pairs = [(after[key], before[key]) for key in before]
    return all(new is None or old is None or new >= old for new, old in pairs)


def _listed(rule: Rule, before: Dice, after: Dice, kept: bool) -> dict[str, Any]:
    scores = {
        name: {"foreground_mean": _mean(dice.values()), "mean": dice}
        for name, dice in (("before", before), ("after", after))
    }
    return {"rule": postprocess.to_json(rule), "kept": kept, **scores}
