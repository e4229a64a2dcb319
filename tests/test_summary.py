"""summary.json: nnU-Net's tables, means that leave out what does not exist, valid JSON."""

import json

import pytest

from segpipe import digest
from segpipe.evaluation import summary


def row(one, two, n):
    return summary.case_row(
        {"1": {"Dice": one, "TP": n}, "2": {"Dice": two, "TP": 2 * n}}, f"seg/{n}.nii.gz", f"labelsTr/{n}.nii.gz"
    )


ROWS = [row(0.8, None, 10), row(0.6, None, 20), row(None, 0.3, 30)]


def test_means_leave_out_what_is_null_but_never_a_case():
    tables = summary.tables(ROWS)
    assert tables["mean"]["1"]["Dice"] == pytest.approx(0.7)
    assert tables["mean"]["2"]["Dice"] == pytest.approx(0.3)
    assert tables["mean"]["2"]["TP"] == pytest.approx(40)
    # the foreground mean is that of the classes, not of the cases
    assert tables["foreground_mean"] == {"Dice": pytest.approx(0.5), "TP": pytest.approx(30)}
    assert tables["metric_per_case"] == ROWS


def test_a_class_that_no_case_has_is_null_and_leaves_the_foreground_mean_alone():
    tables = summary.tables([row(0.8, None, 1), row(0.4, None, 2)])
    assert tables["mean"]["2"]["Dice"] is None
    assert tables["foreground_mean"]["Dice"] == pytest.approx(0.6)
    assert summary.tables([row(None, None, 1)])["foreground_mean"]["Dice"] is None


def test_the_file_is_valid_json_in_nnunets_schema(tmp_path):
    digest.write_json(tmp_path / "summary.json", {**summary.tables(ROWS), "versions": summary.versions()})

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    text = (tmp_path / "summary.json").read_text()
    content = json.loads(text, parse_constant=refuse)
    assert {"foreground_mean", "mean", "metric_per_case"} < set(content)
    assert set(content["metric_per_case"][0]) == {"metrics", "prediction_file", "reference_file"}
    assert content["metric_per_case"][0]["metrics"]["2"]["Dice"] is None


def test_not_a_number_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        digest.write_json(tmp_path / "summary.json", {"Dice": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_versions_name_what_computed_the_numbers():
    assert {"segpipe", "torch", "numpy", "scipy", "python"} == set(summary.versions())
