"""The cross-validation table: every case of every fold once, of equal data and settings."""

import json
import logging

import pytest
from tiny import params

from segpipe import digest
from segpipe.data.cases import Cases
from segpipe.data.labels import Labels
from segpipe.errors import SegpipeError
from segpipe.evaluation import crossval, summary


def gather(paths, out):
    """With what postprocessing.json says: the same cases, each of them better."""
    better = summary.tables([row(case, 1.0, 0.5) for case in "ab"])
    told = {"models": "all", "members": ["2d"], "rules": [{"of": "liver"}], "tried": [], "postprocessed": better}
    digest.write_json(out.with_name("postprocessing.json"), told)
    cases = Cases(out.parent, {"file_ending": ".nii.gz", "training": {}})
    crossval.gather(cases, paths, out.with_name("postprocessing.json"), out, out.with_name("metrics.json"), params())


IDENTITY = {"dataset": "d", "training": "t", "checkpoint": "final", "validate": "v"}
LABELS = json.loads(
    json.dumps(Labels({"background": (0,), "vessel": (2,), "liver": (1,)}, None, None, (0, 1, 2)).to_json())
)


def row(case, one, two):
    metrics = {key: {"Dice": dice, "nsd": dice, "hd95_mm": None} for key, dice in (("1", one), ("2", two))}
    return summary.case_row(metrics, f"results/{case}.nii.gz", f"labelsTr/{case}.nii.gz")


def fold(tmp_path, number, rows, **identity):
    path = tmp_path / f"fold_{number}/summary.json"
    content = {**summary.tables(rows), "fold": str(number), "identity": {**IDENTITY, **identity}, "labels": LABELS}
    digest.write_json(path, content)
    return path


def test_the_mean_is_over_cases_not_over_folds(tmp_path):
    paths = [
        fold(tmp_path, 0, [row("a", 0.9, 0.2), row("b", 0.7, None), row("c", 0.5, None)]),
        fold(tmp_path, 1, [row("d", 0.1, 0.6)]),
    ]
    gather(paths, tmp_path / "crossval/summary.json")
    content = digest.read_json(tmp_path / "crossval/summary.json")
    assert content["mean"]["1"]["Dice"] == pytest.approx((0.9 + 0.7 + 0.5 + 0.1) / 4)
    assert content["mean"]["2"]["Dice"] == pytest.approx(0.4)
    assert content["foreground_mean"]["Dice"] == pytest.approx((0.55 + 0.4) / 2)
    assert [one["reference_file"] for one in content["metric_per_case"]] == [
        f"labelsTr/{case}.nii.gz" for case in "abcd"
    ]
    assert content["folds"]["0"]["mean"]["1"]["Dice"] == pytest.approx(0.7)
    assert content["folds"]["1"]["foreground_mean"]["Dice"] == pytest.approx(0.35)
    assert content["identity"] == IDENTITY
    assert content["labels"] == LABELS


def test_classes_that_exist_nowhere_are_null(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    paths = [fold(tmp_path, 0, [row("a", None, None)]), fold(tmp_path, 1, [row("b", None, None)])]
    gather(paths, tmp_path / "out.json")
    content = json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)
    assert content["mean"]["1"]["Dice"] is None
    assert content["foreground_mean"]["Dice"] is None
    assert "over 2 cases" in caplog.text


@pytest.mark.parametrize("key", IDENTITY)
def test_folds_of_other_data_or_settings_are_refused(tmp_path, key):
    paths = [fold(tmp_path, 0, [row("a", 1, 1)]), fold(tmp_path, 1, [row("b", 1, 1)], **{key: "other"})]
    with pytest.raises(SegpipeError, match="different data or settings") as error:
        gather(paths, tmp_path / "out.json")
    assert all(str(path) in str(error.value) for path in paths)
    assert not (tmp_path / "out.json").exists()


def test_what_the_rules_make_of_it_stands_beside(tmp_path):
    gather([fold(tmp_path, 0, [row("a", 0.9, 0.2), row("b", 0.7, None)])], tmp_path / "out.json")
    content = digest.read_json(tmp_path / "out.json")
    after = content["postprocessed"]
    assert content["mean"]["1"]["Dice"] == pytest.approx(0.8)
    assert after["mean"]["1"]["Dice"] == 1
    assert (after["models"], after["members"], after["rules"]) == ("all", ["2d"], [{"of": "liver"}])
    assert after["confidence"]["mean"]["1"]["Dice"] == {"low": 1, "high": 1}


def test_experiments_are_compared_by_few_numbers(tmp_path):
    """Those of the summary, with the classes' names; what is null there is null here."""
    gather([fold(tmp_path, 0, [row("a", 0.9, 0.2), row("b", 0.7, 0.6)])], tmp_path / "out.json")
    content, metrics = (digest.read_json(tmp_path / name) for name in ("out.json", "metrics.json"))
    interval = content["confidence"]["foreground_mean"]["Dice"]
    classes = metrics.pop("classes")
    assert metrics == {
        "Dice": pytest.approx(0.6),
        "nsd": pytest.approx(0.6),
        "hd95_mm": None,
        "Dice_low": interval["low"],
        "Dice_high": interval["high"],
        "Dice_postprocessed": 0.75,
        "Dice_of": {"liver": pytest.approx(0.8), "vessel": pytest.approx(0.4)},
    }
    assert [one["class"] for one in classes] == ["liver", "vessel"]
    assert [one["Dice"] for one in classes] == list(metrics["Dice_of"].values())


def test_regions_are_compared_by_their_names(tmp_path):
    labels = Labels({"background": (0,), "whole": (1, 2), "core": (2,)}, (1, 2), None, (0, 1, 2))
    path = fold(tmp_path, 0, [row("a", 0.9, 0.2)])
    content = digest.read_json(path)
    rows = [
        {**one, "metrics": {"(1, 2)": one["metrics"]["1"], "2": one["metrics"]["2"]}}
        for one in content["metric_per_case"]
    ]
    digest.write_json(path, {**content, **summary.tables(rows), "labels": labels.to_json()})
    gather([path], tmp_path / "out.json")
    metrics = digest.read_json(tmp_path / "metrics.json")
    assert metrics["Dice_of"] == {"whole": 0.9, "core": 0.2}
    assert metrics["Dice_low"] is None  # one case has no interval


def test_a_case_of_two_folds_is_refused(tmp_path):
    paths = [fold(tmp_path, 0, [row("a", 1, 1), row("b", 1, 1)]), fold(tmp_path, 1, [row("b", 1, 1)])]
    with pytest.raises(SegpipeError, match=r"validated twice\n.*\n.*labelsTr/b\.nii\.gz"):
        gather(paths, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_one_fold_alone(tmp_path):
    gather([fold(tmp_path, 3, [row("a", 0.5, None)])], tmp_path / "out.json")
    assert list(digest.read_json(tmp_path / "out.json")["folds"]) == ["3"]
