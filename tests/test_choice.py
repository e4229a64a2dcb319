"""The choice among configurations: every set of them scored as it would predict, the smallest of equals chosen."""

from pathlib import Path

import numpy as np
import pytest
from tiny import params
from validations import member, random_softmax

from segpipe import digest
from segpipe.errors import SegpipeError
from segpipe.evaluation import summary
from segpipe.evaluation.overlap import case_overlap
from segpipe.inference import choice
from segpipe.inference.choice import Candidate
from segpipe.inference.ensemble import ensemble

pytest_plugins = ["phantom_fixtures"]

OUT = Path("results/crossval/model_choice.json")
NAMES = ("2d", "3d_fullres", "3d_lowres")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Relative output paths, as the workflow's."""
    monkeypatch.chdir(tmp_path)


def folders(prepared, names=NAMES, near=(0.0, 0.0, 0.0), **identity):
    """Validations of two folds of two cases; `near` leads the softmax towards the labels."""
    ids = prepared.cases.training
    return [
        member(prepared, name, seed, cases=ids[2 * fold : 2 * fold + 2], fold=str(fold), near=near[seed], **identity)
        for seed, name in enumerate(names)
        for fold in range(2)
    ]


def settings(names=NAMES, **changes):
    return params(configurations=list(names), evaluate__bootstrap_resamples=200, **changes)


def listed(content):
    return {tuple(candidate["members"]): candidate for candidate in content["candidates"]}


def test_every_set_up_to_the_limit_is_scored_as_it_predicts(prepared):
    choice.choose(prepared.cases, folders(prepared, near=(0.5, 1.0, 0.2)), OUT, settings(choose__largest=2))
    found = listed(digest.read_json(OUT))
    pairs = {("2d", "3d_fullres"), ("2d", "3d_lowres"), ("3d_fullres", "3d_lowres")}
    assert set(found) == {(name,) for name in NAMES} | pairs
    cases, near = prepared.cases, dict(zip(NAMES, (0.5, 1.0, 0.2), strict=True))
    for members, candidate in found.items():
        rows = []
        for case in cases.training[:4]:
            softmax = [random_softmax(prepared, case, NAMES.index(name), near[name]) for name in members]
            label_map = np.mean(softmax, axis=0, dtype=np.float32).argmax(0)
            rows.append(summary.case_row(case_overlap(label_map, cases.read_label(case), cases.labels, None), "", ""))
        table = summary.tables(rows)
        assert candidate["mean"] == pytest.approx(table["foreground_mean"]["Dice"], abs=1e-4)
        assert candidate["per_class"]["2"] == pytest.approx(table["mean"]["2"]["Dice"], abs=1e-4)
        of_fold = summary.tables(rows[2:])["foreground_mean"]["Dice"]
        assert candidate["per_fold"]["1"] == pytest.approx(of_fold, abs=1e-4)


def test_three_together_are_tried_where_the_limit_says_so(prepared):
    choice.choose(prepared.cases, folders(prepared), OUT, settings(choose__largest=3))
    assert NAMES in listed(digest.read_json(OUT))


def test_all_together_have_the_numbers_of_the_ensemble(prepared):
    two, weights = NAMES[:2], {"2d": 1, "3d_fullres": 3}
    given = settings(two, ensemble__weights=weights)
    made = folders(prepared, two, near=(0.8, 0.3))
    choice.choose(prepared.cases, made, OUT, given)
    content = digest.read_json(OUT)
    assert content["weights"] == weights
    for fold in range(2):
        out = Path(f"results/fold_{fold}/summary.json")
        ensemble(prepared.cases, [folder for folder in made if folder.parent.name == f"fold_{fold}"], out, given)
        expected = digest.read_json(out)["foreground_mean"]["Dice"]
        assert listed(content)[two]["per_fold"][str(fold)] == expected


def test_one_configuration_needs_no_softmax(prepared):
    made = folders(prepared, ["3d_fullres"])
    for path in Path("results").glob("**/*.npz"):
        path.unlink()
    choice.choose(prepared.cases, made, OUT, settings(["3d_fullres"]))
    content = digest.read_json(OUT)
    assert content["chosen"] == ["3d_fullres"] == choice.chosen(OUT)
    assert listed(content)[("3d_fullres",)]["to_best"] == {"difference": 0.0, "low": 0.0, "high": 0.0}


def test_the_best_is_chosen_and_the_others_are_compared_with_it(prepared):
    choice.choose(prepared.cases, folders(prepared, near=(3.0, 0.0, 0.0)), OUT, settings())
    content = digest.read_json(OUT)
    assert content["chosen"] == ["2d"]
    other = listed(content)[("3d_lowres",)]["to_best"]
    assert other["low"] <= other["difference"] <= other["high"] < 0
    assert listed(content)[("2d",)]["to_best"]["difference"] == 0


def candidate(members, *dice):
    return Candidate(tuple(members), {"0": [{"1": {"Dice": value}} for value in dice]})


def test_fewer_members_are_chosen_within_the_margin():
    tried = [candidate("a", 0.79), candidate("b", 0.80), candidate("ab", 0.81), candidate("abc", 0.82)]
    for margin, best_members in ((0.0, "abc"), (0.015, "ab"), (0.025, "b"), (0.5, "b")):
        best, chosen = choice.select(tried, "Dice", margin)
        assert "".join(best.members) == "abc"
        assert "".join(chosen.members) == best_members


def test_equals_go_to_the_smaller_and_to_the_first():
    tried = [candidate("ab", 0.8), candidate("b", 0.8), candidate("a", 0.8)]
    assert choice.select(tried, "Dice", 0.0)[1].members == ("b",)


def test_classes_that_exist_nowhere_decide_nothing():
    tried = [candidate("a", None, None), candidate("b", None, None)]
    assert choice.select(tried, "Dice", 0.0)[1].members == ("a",)
    tried = [candidate("a", None, None), candidate("b", None, 0.0)]
    assert choice.select(tried, "Dice", 0.0)[1].members == ("b",)


@pytest.mark.parametrize("key", ["training", "validate", "dataset"])
def test_folds_of_other_trainings_or_settings_are_refused(prepared, key):
    made = folders(prepared)
    path = made[1] / "summary.json"
    content = digest.read_json(path)
    content["identity"][key] = "other"
    digest.write_json(path, content)
    with pytest.raises(SegpipeError, match="different data or settings"):
        choice.choose(prepared.cases, made, OUT, settings())
    assert not OUT.exists()
