"""The folds: nnU-Net's draw, groups, strata, a site held out, given ones; every case validated once."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from sklearn.model_selection import KFold
from volumes import real_data

from segpipe import digest
from segpipe.data import given_splits, splits
from segpipe.data.cases import Cases
from segpipe.errors import SegpipeError
from segpipe.params import Splits


def settings(n_folds: int, seed: int = 12345, **columns: str | None) -> Splits:
    return Splits(**{"n_folds": n_folds, "seed": seed, **dict.fromkeys(WAYS), "group": "patient", **columns})


WAYS = ("group", "stratify", "hold_out", "file")
NNUNET = settings(5)

# Validation cases by fold, as nnU-Net 2.8.1 draws them for Dataset004_Hippocampus (generate_crossval_split).
HIPPOCAMPUS = Path(__file__).with_name("data") / "hippocampus_folds.json"


@pytest.mark.parametrize(("n_cases", "n_folds", "seed"), [(180, 5, 12345), (28, 5, 12345), (7, 3, 1), (5, 5, 0)])
def test_folds_are_those_of_sklearn(n_cases: int, n_folds: int, seed: int) -> None:
    ids = [f"case_{index:03d}" for index in range(n_cases)]
    expected = [
        {"train": [ids[i] for i in train], "val": [ids[i] for i in val]}
        for train, val in KFold(n_folds, shuffle=True, random_state=seed).split(ids)
    ]
    assert splits.draw(ids, settings(n_folds, seed)) == expected


def test_the_order_of_the_ids_does_not_count() -> None:
    ids = [f"case_{index}" for index in range(20)]
    assert splits.draw(ids[::-1], NNUNET) == splits.draw(sorted(ids), NNUNET)


def test_every_case_is_validated_once_and_never_trained_on_then() -> None:
    ids = [f"case_{index:02d}" for index in range(23)]
    folds = splits.draw(ids, NNUNET)
    assert sorted(case for fold in folds for case in fold["val"]) == ids
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == ids


def test_another_seed_draws_other_folds() -> None:
    ids = [f"case_{index:02d}" for index in range(23)]
    assert splits.draw(ids, NNUNET) != splits.draw(ids, settings(5, 12346))


def test_hippocampus_is_split_as_nnunet_splits_it() -> None:
    expected = [[f"hippocampus_{number:03d}" for number in fold] for fold in digest.read_json(HIPPOCAMPUS)]
    folds = splits.draw([case for fold in expected for case in fold], NNUNET)
    assert [fold["val"] for fold in folds] == expected


def cases(n: int, **columns: str) -> Cases:
    """Cases with one character per case in each column; a blank: the table does not say it."""
    attributes = [{name: values[index].strip() for name, values in columns.items()} for index in range(n)]
    training = {f"case_{index}": {"attributes": found} for index, found in enumerate(attributes)}
    return Cases(Path("raw"), {"training": training, "test": {"t": {"attributes": {}}}})


def written(found: Cases, how: Splits, tmp_path: Path) -> list[splits.Fold]:
    splits.write(found, how, tmp_path / "splits.json")
    folds: list[splits.Fold] = digest.read_json(tmp_path / "splits.json")
    return folds


def refusal(found: Cases, how: Splits, tmp_path: Path) -> str:
    with pytest.raises(SegpipeError) as error:
        splits.write(found, how, tmp_path / "splits.json")
    assert not (tmp_path / "splits.json").exists()
    return str(error.value)


def test_written_folds_are_read_by_their_number(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    splits.write(cases(6), settings(3, 0), path)
    folds = digest.read_json(path)
    assert [splits.read(path, str(number)) for number in range(3)] == folds
    assert all(fold.keys() == {"train", "val"} for fold in folds)


def test_all_trains_and_validates_on_every_case(tmp_path: Path) -> None:
    splits.write(cases(6), settings(3, 0), tmp_path / "splits.json")
    everything = [f"case_{index}" for index in range(6)]
    assert splits.read(tmp_path / "splits.json", "all") == {"train": everything, "val": everything}


def test_a_fold_that_was_not_drawn_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    splits.write(cases(6), settings(3, 0), path)
    with pytest.raises(SegpipeError) as error:
        splits.read(path, "3")
    for word in (str(path), "0 to 2, or all"):
        assert word in str(error.value)


def test_fewer_cases_than_folds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SegpipeError, match="fewer cases than folds"):
        splits.write(cases(4), NNUNET, tmp_path / "splits.json")
    assert not (tmp_path / "splits.json").exists()


# along columns of cases.tsv


def values(folds: list[splits.Fold], side: str, column: str) -> list[list[str]]:
    """The sorted values of a column in one side of each fold."""
    return [sorted(column[int(case.removeprefix("case_"))] for case in fold[side]) for fold in folds]


def test_a_column_patient_keeps_cases_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The folds are nnU-Net's draw over the patients."""
    column = "aabbccdd"
    with caplog.at_level("INFO"):
        folds = written(cases(8, patient=column), settings(2), tmp_path)
    drawn = splits.draw(list("abcd"), settings(2))
    assert values(folds, "val", column) == [sorted(2 * fold["val"]) for fold in drawn]
    assert sorted(case for fold in folds for case in fold["val"]) == cases(8).training
    assert "fold 0: trains on 4 cases (2 patients), validates 4 cases (2 patients); no patient in both" in caplog.text


def test_no_patients_no_groups(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nnunet = splits.draw(cases(8).training, settings(2))
    with caplog.at_level("INFO"):
        assert written(cases(8, site="aabbccdd"), settings(2), tmp_path) == nnunet
    assert "no column `patient` in cases.tsv" in caplog.text
    assert "trains on 4 cases, validates 4 cases; no case in both" in caplog.text
    assert written(cases(8, patient="aabbccdd"), settings(2, group=None), tmp_path) == nnunet


def test_each_case_its_own_patient_is_nnunets_draw(tmp_path: Path) -> None:
    nnunet = splits.draw(cases(8).training, settings(3))
    assert written(cases(8, patient="abcdefgh"), settings(3), tmp_path) == nnunet


@pytest.mark.parametrize("ways", [{}, {"stratify": "patient", "group": None}, {"hold_out": "patient", "group": None}])
def test_a_column_that_is_empty_somewhere_is_refused(tmp_path: Path, ways: dict[str, str | None]) -> None:
    text = refusal(cases(6, patient="a b cd"), settings(2, **ways), tmp_path)
    assert "cases.tsv, column patient" in text
    assert "nothing for case_1, case_3" in text
    assert "a value for each of the 6 training cases" in text


@pytest.mark.parametrize("way", ["stratify", "hold_out"])
def test_a_column_that_is_asked_for_must_be_there(tmp_path: Path, way: str) -> None:
    assert "columns ['site']" in refusal(cases(6, site="aabbcc"), settings(2, **{way: "scanner"}), tmp_path)


def test_fewer_patients_than_folds_are_refused(tmp_path: Path) -> None:
    text = refusal(cases(6, patient="aaabbb"), settings(3), tmp_path)
    assert "fewer patients than folds" in text
    assert "found:    2 patients" in text


def test_strata_are_spread_evenly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    column = "aaaaaaaabbbb"
    with caplog.at_level("INFO"):
        folds = written(cases(12, site=column), settings(4, stratify="site"), tmp_path)
    assert values(folds, "val", column) == [["a", "a", "b"]] * 4
    assert "trains on 9 cases (a: 6, b: 3), validates 3 cases (a: 2, b: 1)" in caplog.text
    assert written(cases(12, site=column), settings(4, stratify="site"), tmp_path) == folds
    assert written(cases(12, site=column), settings(4, seed=1, stratify="site"), tmp_path) != folds


def test_strata_and_patients_together(tmp_path: Path) -> None:
    site, patient = "aaaaaaaabbbb", "ppqqrrssttuu"
    folds = written(cases(12, site=site, patient=patient), settings(2, stratify="site"), tmp_path)
    assert values(folds, "val", site) == [list("aaaabb")] * 2
    for train, val in zip(values(folds, "train", patient), values(folds, "val", patient), strict=True):
        assert not set(train) & set(val)


def test_strata_smaller_than_the_folds_are_refused(tmp_path: Path) -> None:
    assert "fewer cases of the largest site than folds" in refusal(
        cases(6, site="aabbcc"), settings(3, stratify="site"), tmp_path
    )


def test_a_site_is_held_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    column = "zzaabbbb"
    with caplog.at_level("INFO"):
        folds = written(cases(8, site=column), settings(3, hold_out="site"), tmp_path)
    assert values(folds, "val", column) == [["a", "a"], ["b"] * 4, ["z", "z"]]
    assert values(folds, "train", column) == [list("bbbbzz"), list("aazz"), list("aabbbb")]
    assert "fold 1: trains on 4 cases (a: 2, z: 2), validates 4 cases (b: 4)" in caplog.text


def test_a_site_to_hold_out_is_a_fold(tmp_path: Path) -> None:
    text = refusal(cases(8, site="zzaabbbb"), settings(5, hold_out="site"), tmp_path)
    assert "expected: 3: a, b, z" in text
    assert "set splits.n_folds: 3" in text


def test_a_patient_of_two_sites_cannot_be_held_out(tmp_path: Path) -> None:
    found = cases(6, site="aaabbb", patient="ppqqrs")
    text = refusal(found, settings(2, hold_out="site"), tmp_path)
    assert "a patient on both sides of a fold" in text
    assert "fold 0 of splits.hold_out: site" in text
    assert "found:    q" in text
    assert written(found, settings(2, hold_out="site", group=None), tmp_path)


# given folds


@pytest.mark.parametrize(
    ("second", "wrong"),
    [
        ({"train": ["a", "b"], "val": ["c", "d"]}, None),
        ({"train": ["a", "b", "d"], "val": ["c"]}, "d (0 folds)"),
        ({"train": ["b"], "val": ["a", "c", "d"]}, "a (2 folds)"),
    ],
)
def test_a_cascade_needs_each_case_validated_once(tmp_path: Path, second: Any, wrong: str | None) -> None:
    digest.write_json(tmp_path / "given.json", [{"train": ["c", "d"], "val": ["a", "b"]}, second])
    if wrong is None:
        given_splits.require_each_validated_once(tmp_path / "given.json")
    else:
        with pytest.raises(SegpipeError, match=re.escape(wrong)):
            given_splits.require_each_validated_once(tmp_path / "given.json")


FOLDS = [{"train": ["case_0", "case_1"], "val": ["case_2"]}, {"train": ["case_2"], "val": ["case_0", "case_1"]}]


def given(tmp_path: Path, content: object) -> Splits:
    digest.write_json(tmp_path / "given.json", content)
    return settings(2, file=str(tmp_path / "given.json"))


def test_given_folds_are_taken(tmp_path: Path) -> None:
    assert written(cases(3), given(tmp_path, FOLDS), tmp_path) == FOLDS


def test_cases_that_no_fold_uses_are_reported_and_part_of_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folds = written(cases(5), given(tmp_path, FOLDS), tmp_path)
    assert [fold["neither"] for fold in folds] == [["case_3", "case_4"]] * 2
    assert "no fold validates 2 of 5 cases: case_3, case_4" in caplog.text
    assert "no fold trains on 2 of 5 cases: case_3, case_4" in caplog.text
    assert splits.read(tmp_path / "splits.json", "1") == FOLDS[1]
    assert splits.read(tmp_path / "splits.json", "all") == dict.fromkeys(("train", "val"), cases(5).training)


def test_cases_that_several_folds_validate_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    overlapping = [FOLDS[0], {"train": ["case_0"], "val": ["case_1", "case_2"]}]
    written(cases(3), given(tmp_path, overlapping), tmp_path)
    assert "several folds validate 1 of 3 cases: case_2" in caplog.text


@pytest.mark.parametrize(
    ("fold", "what", "found"),
    [
        ({"train": ["case_0", "x"], "val": ["case_1"]}, "unknown cases", "x"),
        ({"train": ["case_0", "case_1"], "val": ["case_1"]}, "cases listed more than once", "case_1"),
        ({"train": ["case_0", "case_0"], "val": ["case_1"]}, "cases listed more than once", "case_0"),
        ({"train": ["case_0"], "val": []}, "nothing to train on or to validate", "val"),
        ({"train": [], "val": ["case_0"]}, "nothing to train on or to validate", "train"),
        ({"train": ["t"], "val": ["case_0"]}, "unknown cases", "t"),
    ],
)
def test_given_folds_that_do_not_fit_are_refused(
    tmp_path: Path, fold: dict[str, list[str]], what: str, found: str
) -> None:
    text = refusal(cases(3), given(tmp_path, [FOLDS[0], fold]), tmp_path)
    assert f"{what}\n  where:    {tmp_path / 'given.json'}, fold 1\n  found:    {found}\n" in text


def test_another_number_of_given_folds_is_refused(tmp_path: Path) -> None:
    text = refusal(cases(3), given(tmp_path, [*FOLDS, FOLDS[0]]), tmp_path)
    assert "found:    3 folds" in text
    assert "set splits.n_folds: 3" in text


@pytest.mark.parametrize("content", [{}, [1], [{"train": ["a"]}], [{"train": "a", "val": ["b"]}], None])
def test_what_is_no_list_of_folds_is_refused(tmp_path: Path, content: object) -> None:
    how = given(tmp_path, content)
    if content is None:
        (tmp_path / "given.json").unlink()
    assert "no usable splits" in refusal(cases(3), how, tmp_path)


def test_given_folds_do_not_separate_a_patient(tmp_path: Path) -> None:
    found = cases(3, patient="ppp")
    assert f"fold 0 of {tmp_path / 'given.json'}" in refusal(found, given(tmp_path, FOLDS), tmp_path)


def test_one_way_to_make_folds() -> None:
    with pytest.raises(ValidationError, match="stratify and hold_out exclude each other"):
        settings(3, stratify="site", hold_out="site")


# a real dataset with two cases per patient


def test_acdc_keeps_its_patients_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = (real_data("Dataset027_ACDC") / "cases.tsv").read_text()
    rows = [line.split("\t") for line in table.splitlines()[1:]]
    content = {"training": {case: {"attributes": {"patient": patient}} for case, patient in rows}, "test": {}}
    with caplog.at_level("INFO"):
        folds = written(Cases(Path("raw"), content), NNUNET, tmp_path)
    assert sorted(case for fold in folds for case in fold["val"]) == sorted(case for case, _ in rows)
    assert all({case[:10] for case in fold["train"]}.isdisjoint(case[:10] for case in fold["val"]) for fold in folds)
    assert caplog.text.count("no patient in both") == 5
