"""Learning what to remove: each rule's score is that of applying it, and only what helps is kept."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from tiny import labels_of, params
from validations import member

from segpipe import digest
from segpipe.data.cases import Cases
from segpipe.errors import SegpipeError
from segpipe.evaluation import summary
from segpipe.evaluation.overlap import case_overlap
from segpipe.inference import choice, postprocess, postprocess_crossval, postprocessing
from segpipe.inference.ensemble import ensemble
from segpipe.inference.kept import Kept
from segpipe.inference.postprocess import Rule
from segpipe.inference.postprocessing import Segmented

pytest_plugins = ["phantom_fixtures"]

TWO = labels_of({"background": 0, "organ": 1, "tumour": 2})
REGIONS = labels_of({"background": 0, "whole": [1, 2], "core": 2}, [1, 2])
IGNORING = labels_of({"background": 0, "organ": 1, "tumour": 2, "ignore": 3})
OUT = Path("results/crossval/postprocessing.json")
NUMBERS = itertools.count()  # nothing is kept from one to the next


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Relative output paths, as the workflow's."""
    monkeypatch.chdir(tmp_path)


class InMemory(Cases):
    """Cases whose labels and segmentations are arrays."""

    def __init__(self, labels, pairs, spacing_mm, annotated=None):
        shape = list(pairs[0][0].shape)
        entry = {"shape": shape, "spacing_mm": list(spacing_mm), "annotated": annotated}
        names = [str(index) for index in range(len(pairs))]
        content = {"labels": labels.to_json(), "training": dict.fromkeys(names, entry), "test": {}}
        super().__init__(Path(), content)
        object.__setattr__(self, "pairs", dict(zip(names, pairs, strict=True)))

    def read_segmentation(self, path):
        return self.pairs[str(path)][0]

    def read_label(self, case):
        return self.pairs[case][1]


def segmented(labels, pairs, spacing_mm=(1.0, 1.0, 1.0), annotated=None):
    cases = InMemory(labels, pairs, spacing_mm, annotated)
    return Segmented(cases, {case: Path(case) for case in cases.training}, 1, Kept(Path("state"), str(next(NUMBERS))))


def settings(largest=True, ml=(0.004, 0.02), voxels=(4,)):
    return params(
        postprocess__largest_component=largest, postprocess__minimum_ml=[*ml], postprocess__minimum_voxels=[*voxels]
    ).postprocess


def blobs(seed, n_values=3, share=0.35):
    """Random components of many sizes, and labels that are near them."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, n_values, (3, 4, 4)) * (rng.random((3, 4, 4)) < share)
    reference = np.kron(coarse, np.ones((2, 3, 3), int)).astype(np.int16)
    noise = rng.random(reference.shape)
    segmentation = np.where(noise < 0.08, rng.integers(0, min(n_values, 3), reference.shape), reference)
    segmentation[segmentation > 2] = 0
    return segmentation.astype(np.int16), reference


@pytest.mark.parametrize(("labels", "annotated"), [(TWO, None), (REGIONS, None), (IGNORING, None), (TWO, ["organ"])])
def test_scores_are_those_of_applying_the_rule(labels, annotated):
    """Whatever is counted from removed voxels alone: regions, an ignore label, classes that nobody annotated."""
    pairs = [blobs(seed, len(labels.file_values)) for seed in range(3)]
    of = segmented(labels, pairs, annotated=annotated)
    kept, tried = postprocessing.learn(of, settings())
    done: list[Rule] = []
    assert len(tried) == 1 + 2 * 5
    for number, one in enumerate(tried):
        rule = Rule(**one["rule"])
        for name, rules in (("before", done), ("after", [*done, rule])):
            rows = []
            for segmentation, reference in pairs:
                result = postprocess.apply(segmentation, labels, rules, (1.0, 1.0, 1.0))
                rows.append(summary.case_row(case_overlap(result, reference, labels, annotated), "", ""))
            table = summary.tables(rows)
            if name == "after" or labels.has_regions or number == 0:
                expected = {key: numbers["Dice"] for key, numbers in table["mean"].items()}
                assert one[name]["mean"] == pytest.approx(expected), (number, name)
                assert one[name]["foreground_mean"] == pytest.approx(table["foreground_mean"]["Dice"])
        group_ends = number == 0 or number in (5, 10)
        if group_ends and (number == 0 or labels.has_regions):
            done += [
                Rule(**other["rule"])
                for other in tried[: number + 1]
                if other["kept"] and Rule(**other["rule"]) not in done
            ]
    assert kept == [Rule(**one["rule"]) for one in tried if one["kept"]]


def test_what_helps_is_kept():
    """A second organ far away is wrong in both cases; both tumours are right."""
    pairs = []
    for place in (1, 2):
        reference = np.zeros((6, 12, 12), np.int16)
        reference[place, 1:5, 1:5] = 1
        reference[place, 5:7, 1:3] = reference[5, 10, 10] = 2
        segmentation = reference.copy()
        segmentation[place, 9, 9:11] = 1
        pairs.append((segmentation, reference))
    kept, tried = postprocessing.learn(segmented(TWO, pairs), settings())
    assert kept == [Rule("organ", largest_component=True)]
    assert not tried[0]["kept"]  # of all foreground: the small tumour would go
    of_tumour = [one for one in tried if one["rule"]["of"] == "tumour"]
    assert of_tumour
    assert not any(one["kept"] for one in of_tumour)


def test_a_minimum_size_is_kept_where_several_components_are_right():
    reference = np.zeros((6, 12, 12), np.int16)
    reference[1, 1:5, 1:5] = reference[4, 1:5, 1:5] = 1
    segmentation = reference.copy()
    segmentation[4, 1, 1] = 0
    segmentation[2, 9, 9] = segmentation[2, 2, 9] = 1
    kept, _ = postprocessing.learn(segmented(TWO, [(segmentation, reference)]), settings())
    assert kept == [Rule("organ", minimum_ml=0.004)]


def test_in_2d_sizes_are_voxels():
    reference = np.zeros((1, 12, 12), np.int16)
    reference[0, 1:5, 1:5] = reference[0, 7:11, 1:5] = 1
    segmentation = reference.copy()
    segmentation[0, 8, 9] = 1
    segmentation[0, 1, 1] = 0
    of = segmented(TWO, [(segmentation, reference)], spacing_mm=(999.0, 1.0, 1.0))
    kept, tried = postprocessing.learn(of, settings())
    assert kept == [Rule("organ", minimum_voxels=4)]
    assert all(one["rule"]["minimum_ml"] is None for one in tried)


def test_a_rule_that_helps_one_class_and_harms_another_is_dropped():
    reference = np.zeros((6, 12, 12), np.int16)
    reference[1, 1:5, 1:5] = 1
    reference[1, 5:9, 1:5] = reference[4, 9, 9] = 2
    segmentation = reference.copy()
    segmentation[4, 1:4, 1:4] = 1
    kept, tried = postprocessing.learn(segmented(TWO, [(segmentation, reference)] * 2), settings(ml=()))
    assert tried[0]["rule"]["of"] is None
    assert tried[0]["after"]["foreground_mean"] > tried[0]["before"]["foreground_mean"]
    assert not tried[0]["kept"]
    assert kept == [Rule("organ", largest_component=True)]


def test_nothing_is_tried_where_nothing_is_asked_for():
    assert postprocessing.learn(segmented(TWO, [blobs(0)]), settings(False, (), ())) == ([], [])


def test_of_a_case_is_kept_only_what_the_rules_change():
    """Of a hundred classes there are hundreds of rules: all classes after each of them would fill memory and disk."""
    n_bytes = []
    for n_classes in (10, 40):
        reference = np.zeros((6, 2 * n_classes, 12), np.int16)
        reference[1, ::2, 1:5] = np.arange(1, n_classes + 1)[:, None]
        segmentation = reference.copy()
        segmentation[4, 0, 9] = 1
        labels = labels_of({"background": 0, **{f"organ {value}": value for value in range(1, n_classes + 1)}})
        of = segmented(labels, [(segmentation, reference)])
        assert postprocessing.learn(of, settings(largest=False))[0] == [Rule("organ 1", minimum_ml=0.004)]
        n_bytes.append(sum(path.stat().st_size for path in of.kept.path("").rglob("*.json")))
    assert n_bytes[1] < 5 * n_bytes[0]


def crossval(prepared, models):
    """Two configurations in two folds up to their ensembles and the choice; postprocessing learnt of `models`."""
    given = params(configurations=["2d", "3d_fullres"], predict__models=models, evaluate__bootstrap_resamples=100)
    ids = prepared.cases.training
    made = [
        member(prepared, name, seed, cases=ids[fold : fold + 1], fold=str(fold), near=4.0 - seed)
        for seed, name in enumerate(given.configurations)
        for fold in range(2)
    ]
    summaries = [Path(f"results/fold_{fold}/summary.json") for fold in range(2)]
    for fold, path in enumerate(summaries):
        ensemble(prepared.cases, [made[fold], made[2 + fold]], path, given)
    choice.choose(prepared.cases, made, OUT.parent / "model_choice.json", given)
    postprocess_crossval.learn(prepared.cases, summaries, made, OUT, given)
    return digest.read_json(OUT), summaries, made, given


@pytest.mark.parametrize("models", ["all", "best"])
def test_what_the_prediction_takes_is_scored_before_and_after(prepared, models):
    """The segmentations are noise around the labels: rules help a lot."""
    content, summaries, _, _ = crossval(prepared, models)
    best = digest.read_json(OUT.parent / "model_choice.json")["chosen"]
    assert content["members"] == (["2d", "3d_fullres"] if models == "all" else best)
    assert content["rules"]
    rows = [row for path in summaries for row in digest.read_json(path)["metric_per_case"]]
    if models == "all" or len(best) == 2:
        before = summary.tables(rows)["mean"]["1"]["Dice"]
        assert content["before"]["mean"]["1"]["Dice"] == pytest.approx(before)
    after = content["postprocessed"]["foreground_mean"]["Dice"]
    assert after > content["before"]["foreground_mean"]["Dice"]
    cases, rules = prepared.cases, postprocess.read(OUT, prepared.cases.labels)
    for row in content["postprocessed"]["metric_per_case"]:
        path = Path(row["prediction_file"])
        case = path.name.removesuffix(".nii.gz")
        done = postprocess.apply(cases.read_segmentation(path), cases.labels, rules, cases.entry(case)["spacing_mm"])
        expected = case_overlap(done, cases.read_label(case), cases.labels, None)
        assert {key: numbers["Dice"] for key, numbers in row["metrics"].items()} == {
            key: numbers["Dice"] for key, numbers in expected.items()
        }


def test_a_choice_among_other_networks_is_refused(prepared):
    _, summaries, made, given = crossval(prepared, "best")
    OUT.unlink()
    for folder in made:
        content = digest.read_json(folder / "summary.json")
        digest.write_json(folder / "summary.json", {**content, "digest": "other"})
    with pytest.raises(SegpipeError, match="choice and validations of different data or settings"):
        postprocess_crossval.learn(prepared.cases, summaries, made, OUT, given)
    assert not OUT.exists()
