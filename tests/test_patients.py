"""Cases of one patient are drawn together: in every interval, and nothing changes where no table says so."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from conftest import REPO
from numpy.typing import NDArray
from scipy import stats
from tiny import Prepared, params
from validations import member

from segpipe import digest
from segpipe import params as params_yaml
from segpipe.cli import main as command
from segpipe.data.cases import Cases
from segpipe.errors import SegpipeError
from segpipe.evaluation import crossval, intervals, summary
from segpipe.inference import choice

pytest_plugins = ["phantom_fixtures"]

VALUES = np.random.default_rng(0).beta(8, 2, (25, 2))
LABELS = {
    "names": {"background": [0], "liver": [1], "vessel": [2]},
    "regions_order": None,
    "ignore": None,
    "file_values": [0, 1, 2],
}
CASES = "abcdefghijklmnopqrstuvwx"  # each two neighbours are one patient


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "start_log", lambda path: None)
    monkeypatch.chdir(tmp_path)


def row(case: str, values: Sequence[float], folder: str = "results/fold_0") -> dict[str, Any]:
    metrics = {
        str(i): {"Dice": None if np.isnan(one) else float(one), "nsd": None, "hd95_mm": None, "n_ref": 100}
        for i, one in enumerate(values, 1)
    }
    return summary.case_row(metrics, f"{folder}/segmentations/{case}.nii.gz", f"labelsTr/{case}.nii.gz")


def confidence(values: NDArray[np.float64], patients: Sequence[str] | None = None, **changes: Any) -> dict[str, Any]:
    ids = [f"case_{i}" for i in range(len(values))]
    groups = None if patients is None else dict(zip(ids, patients, strict=True))
    settings = params(**{f"evaluate__{key}": value for key, value in changes.items()}).evaluate
    rows = [row(case, of_case) for case, of_case in zip(ids, values, strict=True)]
    return intervals.confidence(rows, intervals.units(ids, groups, "patient"), settings)


def width(content: Mapping[str, Any]) -> float:
    return float(content["high"] - content["low"])


# intervals


def test_without_patients_the_draws_are_those_there_always_were() -> None:
    """The numbers of the code before it knew patients; sums of floats may come in another order elsewhere."""
    found = confidence(VALUES)
    for of, between in (
        (found["foreground_mean"], (0.7419009163166035, 0.8150649084562298)),
        (found["mean"]["1"], (0.7257179878433969, 0.8202657115495416)),
        (found["mean"]["2"], (0.7393194507647781, 0.8287432235383178)),
    ):
        assert (of["Dice"]["low"], of["Dice"]["high"]) == pytest.approx(between, rel=1e-13)
    assert found["method"] == "percentile bootstrap over cases"
    assert (found["resampled"], found["n_resampled"]) == ("cases", 25)


def test_patients_of_one_case_each_change_nothing() -> None:
    alone, of_cases = confidence(VALUES, [f"z{40 - i}" for i in range(25)]), confidence(VALUES)
    assert {key: alone[key] for key in ("foreground_mean", "mean")} == {
        key: of_cases[key] for key in ("foreground_mean", "mean")
    }
    assert (alone["method"], alone["resampled"]) == ("percentile bootstrap over patients", "patients")


def test_a_case_that_comes_three_times_makes_a_mean_no_surer() -> None:
    thrice, patients = np.repeat(VALUES, 3, axis=0), [f"p{i // 3}" for i in range(75)]
    once, found = confidence(VALUES), confidence(thrice, patients)
    assert found["n_resampled"] == 25
    for of in ("foreground_mean", "mean"):
        assert json.dumps(found[of]) != json.dumps(confidence(thrice)[of])
    for end, value in once["mean"]["1"]["Dice"].items():
        assert found["mean"]["1"]["Dice"][end] == pytest.approx(value)
    assert width(confidence(thrice)["mean"]["1"]["Dice"]) < 0.7 * width(once["mean"]["1"]["Dice"])


def test_patients_with_many_cases_count_as_often_as_they_have_cases() -> None:
    """Against draws made one by one."""
    sizes = [1, 5, 2, 9, 1, 3, 1, 4, 2, 2]
    patients = [f"p{i}" for i, size in enumerate(sizes) for _ in range(size)]
    values = np.random.default_rng(3).normal(size=(sum(sizes), 2))
    of = [np.flatnonzero(np.array(patients) == name) for name in dict.fromkeys(patients)]
    rng = np.random.default_rng(8)
    means = [values[np.concatenate([of[i] for i in rng.integers(0, 10, 10)]), 0].mean() for _ in range(20000)]
    found = confidence(values, patients, bootstrap_resamples=20000)["mean"]["1"]["Dice"]
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.02)


def test_one_patient_says_nothing_however_many_cases() -> None:
    gaps = VALUES[:6].copy()
    gaps[3:, 1] = np.nan
    found = confidence(gaps, ["a", "a", "a", "b", "b", "b"])
    assert found["mean"]["1"]["Dice"] is not None
    assert found["mean"]["2"]["Dice"] is None
    assert confidence(VALUES, ["a"] * 25)["foreground_mean"]["Dice"] is None


# the rules


def known(patients: Mapping[str, str] | None, column: str = "patient") -> Cases:
    """Cases as the check lists them."""
    entries = {case: {"attributes": {column: patients[case]} if patients else {}} for case in CASES}
    return Cases(Path("data/raw/Dataset001_X"), {"file_ending": ".nii.gz", "training": entries})


PATIENTS = {case: f"p{index // 2}" for index, case in enumerate(CASES)}


def gathered(cases: Cases, **changes: Any) -> dict[str, Any]:
    rows = [row(case, values) for case, values in zip(CASES, VALUES, strict=False)]
    content = {**summary.tables(rows), "fold": "0", "identity": {}, "labels": LABELS}
    digest.write_json(Path("fold.json"), content)
    told = {"models": "all", "members": ["2d"], "rules": [], "postprocessed": summary.tables(rows[::-1])}
    digest.write_json(Path("postprocessing.json"), told)
    crossval.gather(
        cases, [Path("fold.json")], Path("postprocessing.json"), Path("out.json"), Path("m.json"), params(**changes)
    )
    found: dict[str, Any] = digest.read_json(Path("out.json"))
    return found


def test_the_summary_of_the_cross_validation_says_what_was_drawn() -> None:
    found, without = gathered(known(PATIENTS)), gathered(known(None))
    values = VALUES[: len(CASES)]
    expected = confidence(values, [PATIENTS[case] for case in CASES])
    assert found["confidence"] == expected
    assert (expected["resampled"], expected["n_resampled"]) == ("patients", 12)
    assert found["postprocessed"]["confidence"]["n_resampled"] == 12
    assert found["groups"] == {"column": "patient", "of_case": PATIENTS}
    assert without["confidence"] == confidence(values)
    assert without["groups"] is None
    assert {key: found[key] for key in ("mean", "metric_per_case")} == {
        key: without[key] for key in ("mean", "metric_per_case")
    }


def test_the_column_is_the_one_that_groups_the_folds() -> None:
    found = gathered(known(PATIENTS, "subject"), splits__group="subject")
    assert found["confidence"]["resampled"] == "subjects"
    assert gathered(known(PATIENTS), splits__group=None)["confidence"]["resampled"] == "cases"
    with pytest.raises(SegpipeError, match="nothing for b"):
        gathered(known({**PATIENTS, "b": ""}))


def test_the_choice_draws_patients_in_the_order_of_its_cases(prepared: Prepared) -> None:
    ids, out = prepared.cases.training, Path("results/crossval/model_choice.json")
    folders = [
        member(prepared, name, seed, cases=ids[2 * fold : 2 * fold + 2][::-1], fold=str(fold), near=near)
        for seed, (name, near) in enumerate({"2d": 3.0, "3d_fullres": 0.5}.items())
        for fold in range(2)
    ]
    names = ["2d", "3d_fullres"]
    settings = params(configurations=names, choose__largest=1, evaluate__bootstrap_resamples=300)

    def chosen(patients: Mapping[str, str] | None) -> dict[str, Any]:
        entries = {
            case: {**entry, "attributes": {"patient": patients[case]} if patients else {}}
            for case, entry in prepared.cases.content["training"].items()
        }
        cases = Cases(prepared.cases.root, {**prepared.cases.content, "training": entries})
        choice.choose(cases, folders, out, settings)
        found: dict[str, Any] = digest.read_json(out)
        return found

    groups = {case: "other" if case == ids[1] else "one" for case in ids}
    without, found = chosen(None), chosen(groups)
    assert (without["resampled"], without["n_resampled"]) == ("cases", 4)
    assert (found["resampled"], found["n_resampled"]) == ("patients", 2)
    best, worse = (one["to_best"] for one in found["candidates"])
    assert best["difference"] == 0 > worse["difference"]
    # a draw has one patient twice, the other one twice, or both: the first two of these are the ends of the interval
    scores: dict[str, dict[str, float]] = {"2d": {}, "3d_fullres": {}}
    for folder in folders:
        for one in digest.read_json(folder / "summary.json")["metric_per_case"]:
            of_classes = [numbers["Dice"] for numbers in one["metrics"].values()]
            scores[folder.parts[-3]][Path(one["prediction_file"]).name.split(".")[0]] = float(np.mean(of_classes))
    step = {case: scores["3d_fullres"][case] - scores["2d"][case] for case in ids[:4]}
    ends = [np.mean([step[case] for case in ids[:4] if groups[case] == name]) for name in ("one", "other")]
    assert sorted([worse["low"], worse["high"]]) == pytest.approx(sorted(ends))


# segpipe evaluate


def volume(path: Path, shift: int) -> None:
    path.parent.mkdir(exist_ok=True)
    array = np.zeros((6, 6, 6), np.uint8)
    array[1 + shift : 4 + shift] = 1
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)


def evaluated(*options: str) -> dict[str, Any]:
    command.main(["evaluate", "pred", "ref", "--out", "scores.json", *options])
    found: dict[str, Any] = digest.read_json(Path("scores.json"))
    return found


def test_evaluate_takes_the_table_of_cases(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for case, shift in {"a": 0, "b": 1, "c": 0, "d": 1}.items():
        volume(Path(f"pred/{case}.nii.gz"), shift)
        volume(Path(f"ref/{case}.nii.gz"), 0)
    without = evaluated()
    assert (without["groups"], without["confidence"]["resampled"]) == (None, "cases")
    assert "patients" not in capsys.readouterr().out
    table = Path("cases.tsv")
    table.write_text("case\tpatient\na\tp1\nb\tp1\nc\tp2\nd\tp2\nz\t\n")
    found = evaluated("--cases", "cases.tsv")
    assert found["groups"] == {"column": "patient", "of_case": {"a": "p1", "b": "p1", "c": "p2", "d": "p2"}}
    assert "means over 4 cases, intervals over 2 patients" in capsys.readouterr().out
    # each patient has the same mean
    dice = found["foreground_mean"]["Dice"]
    assert found["confidence"]["foreground_mean"]["Dice"] == pytest.approx({"low": dice, "high": dice})
    assert width(without["confidence"]["foreground_mean"]["Dice"]) > 0.1
    for text, said in (
        ("case\tpatient\na\tp1\na\tp2\nb\tp1\nc\t\nd\tp2\n", ["nothing for c", "cases with several lines"]),
        ("case\tsite\na\tx\n", ["nothing for a, b, c, d", "column patient"]),
        ("name\tpatient\n", ["no table"]),
    ):
        table.write_text(text)
        with pytest.raises(SystemExit) as ended:
            evaluated("--cases", "cases.tsv")
        assert ended.value.code == 2
        assert all(one in caplog.text for one in said)
        caplog.clear()
    with pytest.raises(SystemExit):
        evaluated("--cases", "absent.tsv")
    assert "No such file" in caplog.text


# segpipe compare


def experiment(name: str, seed: int, groups: Mapping[str, str] | None = None, crossval: bool = True) -> str:
    folder = Path("experiments", name)
    rows = [row(case, of_case) for case, of_case in zip(CASES, dice(seed), strict=True)]
    content = {**summary.tables(rows), "labels": LABELS, "identity": {}, "members": {"2d": {"settings": {}}}}
    digest.write_json(folder / "results/fold_0/summary.json", {**content, "fold": "0"})
    if crossval:
        of_groups = groups and {"column": "patient", "of_case": groups}
        digest.write_json(
            folder / "results/crossval/summary.json", {**content, "groups": of_groups, "folds": {"0": {}}}
        )
    text = (REPO / "params.yaml").read_text()
    (folder / "params.yaml").write_text(params_yaml.changed(text, {"dataset": "data/raw/Dataset001_X"}, folder))
    return str(folder)


def compare(*paths: str) -> list[dict[str, str]]:
    command.main(["compare", *paths, "--out", "table.csv"])
    with Path("table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def settings_here() -> Any:
    return params_yaml.load(REPO / "params.yaml").evaluate


def dice(seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(0.5, 1, (len(CASES), 2))


def test_experiments_are_compared_by_case_and_drawn_by_patient(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = compare(experiment("a", 1, PATIENTS), experiment("b", 2, PATIENTS))
    alone = compare(experiment("c", 1), experiment("d", 2))[1]
    steps = dice(2) - dice(1)
    of_patients = steps.reshape(-1, 2, 2).mean(1)
    assert (first["resampled"], first["n_resampled"]) == ("patients", "12")
    assert (second["cases"], second["difference_Dice_cases"]) == ("24", "24")
    assert float(second["difference_Dice"]) == pytest.approx(float(alone["difference_Dice"])) == steps.mean()
    draws = np.random.default_rng(settings_here().bootstrap_seed).multinomial(12, [1 / 12] * 12, 2000)
    expected = np.percentile(draws @ of_patients.mean(1) / 12, [2.5, 97.5])
    between = [float(second[f"difference_Dice_{end}"]) for end in ("low", "high")]
    assert between == pytest.approx(expected.tolist())
    assert between != pytest.approx([float(alone[f"difference_Dice_{end}"]) for end in ("low", "high")])
    assert float(second["difference_Dice_p"]) == pytest.approx(stats.wilcoxon(of_patients.mean(1)).pvalue)
    assert float(second["difference_Dice_liver_p"]) == pytest.approx(stats.wilcoxon(of_patients[:, 0]).pvalue)
    assert float(alone["difference_Dice_p"]) == pytest.approx(stats.wilcoxon(steps.mean(1)).pvalue)
    said = capsys.readouterr().out
    assert "1, 2: its 24 cases are of 12 patients: intervals draw these" in said
    assert said.count("intervals draw these") == 1


def test_few_patients_are_few_however_many_cases(capsys: pytest.CaptureFixture[str]) -> None:
    thirds = {case: f"p{index % 3}" for index, case in enumerate(CASES)}
    compare(experiment("a", 1, thirds), experiment("b", 2, thirds))
    assert "intervals over 3 patients are too narrow; p is at least 0.25" in capsys.readouterr().out


def test_patients_that_one_result_knows_hold_for_both() -> None:
    """nnU-Net's summary.json knows none."""
    theirs = Path("nnunet/summary.json")
    rows = [row(case, values) for case, values in zip(CASES, dice(2), strict=True)]
    digest.write_json(theirs, summary.tables(rows))
    both = compare(experiment("a", 1, PATIENTS), experiment("b", 2, PATIENTS))[1]
    known_by_first, known_by_second = compare("experiments/a", str(theirs)), compare(str(theirs), "experiments/a")
    for end in ("difference_Dice_low", "difference_Dice_p", "Dice_low", "n_resampled"):
        assert known_by_first[1][end] == both[end]
    assert float(known_by_second[1]["difference_Dice_high"]) == pytest.approx(-float(both["difference_Dice_low"]))


def test_before_there_is_a_cross_validation_the_check_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    paths = [experiment(name, seed, crossval=False) for seed, name in enumerate("ab")]
    assert compare(*paths)[0]["resampled"] == "cases"
    for path in paths:
        listed = {"training": {case: {"attributes": {"patient": PATIENTS[case]}} for case in CASES}}
        digest.write_json(Path(path, "data/preprocessed/Dataset001_X/cases.json"), listed)
    assert [line["n_resampled"] for line in compare(*paths)] == ["12", "12"]
    # what a cross-validation drew counts before it
    experiment("a", 0)
    assert [line["n_resampled"] for line in compare(*paths)] == ["24", "12"]
