"""The folds: nnU-Net's draw, every case validated once."""

from pathlib import Path

import pytest
from sklearn.model_selection import KFold

from segpipe import digest
from segpipe.data import splits
from segpipe.data.cases import Cases
from segpipe.errors import SegpipeError
from segpipe.params import Splits

NNUNET = Splits(n_folds=5, seed=12345)

# Validation cases by fold, as nnU-Net 2.8.1 draws them for Dataset004_Hippocampus (generate_crossval_split).
HIPPOCAMPUS = Path(__file__).with_name("data") / "hippocampus_folds.json"


@pytest.mark.parametrize(("n_cases", "n_folds", "seed"), [(180, 5, 12345), (28, 5, 12345), (7, 3, 1), (5, 5, 0)])
def test_folds_are_those_of_sklearn(n_cases: int, n_folds: int, seed: int) -> None:
    ids = [f"case_{index:03d}" for index in range(n_cases)]
    expected = [
        {"train": [ids[i] for i in train], "val": [ids[i] for i in val]}
        for train, val in KFold(n_folds, shuffle=True, random_state=seed).split(ids)
    ]
    assert splits.draw(ids, Splits(n_folds=n_folds, seed=seed)) == expected


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
    assert splits.draw(ids, NNUNET) != splits.draw(ids, Splits(n_folds=5, seed=12346))


def test_hippocampus_is_split_as_nnunet_splits_it() -> None:
    expected = [[f"hippocampus_{number:03d}" for number in fold] for fold in digest.read_json(HIPPOCAMPUS)]
    folds = splits.draw([case for fold in expected for case in fold], NNUNET)
    assert [fold["val"] for fold in folds] == expected


def cases(n: int) -> Cases:
    return Cases(Path("raw"), {"training": {f"case_{index}": {} for index in range(n)}, "test": {"t": {}}})


def test_written_folds_are_read_by_their_number(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    splits.write(cases(6), Splits(n_folds=3, seed=0), path)
    folds = digest.read_json(path)
    assert [splits.read(path, str(number)) for number in range(3)] == folds
    assert all(fold.keys() == {"train", "val"} for fold in folds)


def test_all_trains_and_validates_on_every_case(tmp_path: Path) -> None:
    splits.write(cases(6), Splits(n_folds=3, seed=0), tmp_path / "splits.json")
    everything = [f"case_{index}" for index in range(6)]
    assert splits.read(tmp_path / "splits.json", "all") == {"train": everything, "val": everything}


def test_a_fold_that_was_not_drawn_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    splits.write(cases(6), Splits(n_folds=3, seed=0), path)
    with pytest.raises(SegpipeError) as error:
        splits.read(path, "3")
    for word in (str(path), "0 to 2, or all"):
        assert word in str(error.value)


def test_fewer_cases_than_folds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SegpipeError, match="fewer cases than folds"):
        splits.write(cases(4), NNUNET, tmp_path / "splits.json")
    assert not (tmp_path / "splits.json").exists()
