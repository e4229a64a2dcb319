"""`segpipe compare`: several results side by side, and what makes a comparison unfair."""

import csv
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import REPO, Project, run
from scipy import stats

from segpipe import params
from segpipe.cli import main as command
from segpipe.evaluation import summary
from segpipe.experiments import settings

LABELS = {
    "names": {"background": [0], "liver": [1], "vessel": [2]},
    "regions_order": None,
    "ignore": None,
    "file_values": [0, 1, 2],
}
SETTINGS = yaml.safe_load((REPO / "params.yaml").read_text())
CASES = ("a", "b", "c", "d", "e", "f")
Dice = Mapping[str, tuple[float | None, float | None]]  # of both classes, by case


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "start_log", lambda path: None)
    monkeypatch.chdir(tmp_path)


def compare(*arguments: object) -> None:
    command.main(["compare", *map(str, arguments)])


def dice(seed: int, cases: str = "abcdef") -> dict[str, tuple[float, float]]:
    rng = np.random.default_rng(seed)
    return {case: tuple(rng.uniform(0.5, 1, 2)) for case in cases}  # type: ignore[misc]


def row(case: str, values: tuple[float | None, ...], folder: str, n_ref: int = 100) -> dict[str, Any]:
    metrics = {
        str(key): {"Dice": value, "n_ref": n_ref, "hd95_mm": None if value is None else 10 * (1 - value), "nsd": value}
        for key, value in enumerate(values, 1)
    }
    return summary.case_row(metrics, f"{folder}/segmentations/{case}.nii.gz", f"labelsTr/{case}.nii.gz")


def content(rows: list[dict[str, Any]], fold: str = "0", **changes: Any) -> dict[str, Any]:
    recorded = {name: SETTINGS[name] for name in ("train", "validate", "evaluate")}
    identity = {"dataset": "data", "training": "one", "checkpoint": "final", "validate": "how", "evaluate": "so"}
    members = {"3d_fullres": {"settings": changes.pop("settings", recorded)}}
    whole = {**summary.tables(rows), "fold": fold, "labels": LABELS, "identity": identity, "members": members}
    return {**whole, **changes}


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def experiment(
    name: str, scores: Dice, n_ref: int = 100, set_now: Mapping[str, Any] | None = None, **changes: Any
) -> str:
    """One fold per half of the cases, and the settings."""
    folder = Path("experiments", name)
    half = (len(scores) + 1) // 2
    for fold, cases in enumerate((list(scores)[:half], list(scores)[half:])):
        rows = [row(case, scores[case], f"results/fold_{fold}", n_ref) for case in cases]
        write(folder / f"results/fold_{fold}/summary.json", content(rows, str(fold), **changes))
    text = (REPO / "params.yaml").read_text()
    (folder / "params.yaml").write_text(params.changed(text, {"splits.n_folds": 2, **(set_now or {})}, folder))
    return str(folder)


def table(path: str = "table.csv") -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def notes(said: str) -> list[str]:
    return [line.strip() for line in said.partition("Before numbers are compared\n")[2].splitlines()]


# numbers


def test_means_and_intervals_are_those_of_the_cross_validation(finished: Project) -> None:
    whole = json.loads((finished.folder / "results/crossval/summary.json").read_text())
    compare(finished.folder, "--params", finished.folder / "params.yaml", "--out", "table.csv")
    (line,) = table()
    assert line["folds"] == "0 1"
    assert line["cases"] == "5"
    assert line["of"] == "3d_fullres"
    assert line["checkpoint"] == "final"
    assert line["dataset_digest"] == whole["identity"]["dataset"]
    for name, mean in whole["foreground_mean"].items():
        assert line[name] == ("" if mean is None else str(mean))
        assert line[f"{name}_kidneys"] == ("" if whole["mean"]["2"][name] is None else str(whole["mean"]["2"][name]))
    for name, between in whole["confidence"]["foreground_mean"].items():
        assert not between or line[f"{name}_high"] == str(between["high"])
    between = whole["confidence"]["mean"]["1"]["hd95_mm"]
    assert line["hd95_mm_liver_low"] == str(between["low"])


def test_a_difference_is_that_of_the_means_and_its_interval_of_the_same_draws(
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, other = dice(1), dice(2)
    compare(experiment("a", one), experiment("b", other), "--out", "table.csv")
    first, second = table()
    steps = np.array([np.subtract(other[case], one[case]) for case in one])
    assert float(second["difference_Dice"]) == pytest.approx(steps.mean())
    assert float(second["difference_Dice_vessel"]) == pytest.approx(steps[:, 1].mean())
    assert float(second["difference_hd95_mm"]) == pytest.approx(-10 * steps.mean())
    assert float(second["difference_Dice_p"]) == pytest.approx(stats.wilcoxon(steps.mean(1)).pvalue)
    assert float(second["difference_Dice_liver_p"]) == pytest.approx(stats.wilcoxon(steps[:, 0]).pvalue)
    assert "*" not in capsys.readouterr().out.partition("Dice by class (*")[2]
    better = {case: (liver + 0.01, vessel) for case, (liver, vessel) in one.items()}
    compare("experiments/a", experiment("c", better))
    assert "+0.0100*" in capsys.readouterr().out
    draws = np.random.default_rng(5).integers(0, 6, (100_000, 6))
    low, high = np.percentile(steps.mean(1)[draws].mean(1), [2.5, 97.5])
    assert float(second["difference_Dice_low"]) == pytest.approx(low, abs=0.01)
    assert float(second["difference_Dice_high"]) == pytest.approx(high, abs=0.01)
    assert {value for key, value in first.items() if key.startswith("difference")} == {""}


def test_the_reference_can_be_another_one(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    one, other = experiment("a", dice(1)), experiment("b", dice(2))
    compare(one, other, "--out", "first.csv")
    compare(one, other, "--reference", f"{other}/", "--out", "second.csv")
    assert "Difference to 2," in capsys.readouterr().out
    steps = [float(table(path)[i]["difference_Dice"]) for path, i in (("first.csv", 1), ("second.csv", 0))]
    assert steps[0] == pytest.approx(-steps[1])
    with pytest.raises(SystemExit):
        compare(one, "--reference", other)
    assert "the reference is not compared" in caplog.text


def test_equal_results_differ_by_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    compare(experiment("a", dice(1)), experiment("b", dice(1)), "--out", "table.csv")
    second = table()[1]
    for name in ("", "_liver", "_vessel"):
        parts = [second[f"difference_Dice{name}{part}"] for part in ("", "_low", "_high", "_p")]
        assert parts == ["0.0", "0.0", "0.0", ""]
    said = capsys.readouterr().out
    assert "+0.0000" in said
    assert notes(said) == ["2: intervals over 6 cases are too narrow; p is at least 0.031"]
    assert "Settings that differ" not in said


def test_a_number_that_only_one_has_is_left_out_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    one, other = dice(1), {**dice(2), "b": (0.7, None)}
    compare(experiment("a", one), experiment("b", other), "--out", "table.csv")
    steps = [other[case][1] - one[case][1] for case in "acdef"]
    assert float(table()[1]["difference_Dice_vessel"]) == pytest.approx(np.mean(steps))
    assert table()[1]["difference_Dice_vessel_cases"] == "5"
    expected = "the difference in Dice leaves out cases where only one of the two has a number: 1 of vessel"
    said = capsys.readouterr().out
    assert f"2: {expected}" in notes(said)
    assert expected in table()[1]["remarks"]
    whole = np.nanmean([np.array(other[case], float) - one[case] for case in one], 0).mean()
    assert f"{whole:+.4f} (1 in part)" in said
    (vessel,) = [line for line in said.splitlines() if line.startswith("vessel")]
    assert vessel.endswith("(5 cases)")
    assert "(" not in next(line for line in said.splitlines() if line.startswith("liver"))
    compare(experiment("c", one), experiment("d", {**one, "b": (0.7, None)}), "--out", "table.csv")
    assert [table()[1][f"difference_Dice_vessel{part}"] for part in ("", "_low", "_high")] == ["0.0"] * 3


def test_a_difference_over_fewer_cases_than_the_means_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Its sign may be another than that of the means beside it."""
    one = {"a": (0.5, 0.5), "b": (0.6, 0.6), "c": (0.9, 0.9)}
    other = {"a": (0.6, 0.6), "b": (0.7, None), "d": (0.1, 0.1)}
    compare(experiment("a", one), experiment("b", other))
    said = capsys.readouterr().out
    (liver, vessel) = (
        next(line for line in said.splitlines() if line.startswith(name)) for name in ("liver", "vessel")
    )
    assert liver.split() == ["liver", "0.6667", "0.4667", "+0.1000*", "p", "0.5", "(2", "cases)"]
    assert vessel.split() == ["vessel", "0.6667", "0.3500", "+0.1000", "p", "1", "(1", "cases)"]


def test_ten_cases_are_not_few(capsys: pytest.CaptureFixture[str]) -> None:
    compare(experiment("a", dice(1, "abcdefghij")), experiment("b", dice(2, "abcdefghij")))
    assert not notes(capsys.readouterr().out)


def test_a_case_without_any_number_of_one_is_told_at_the_difference(capsys: pytest.CaptureFixture[str]) -> None:
    compare(experiment("a", dice(1)), experiment("b", {**dice(2), "b": (None, None)}))
    said = capsys.readouterr().out.partition("Difference to 1")[2].partition("\n\n")[2].partition("\n\n")[0]
    assert said.splitlines()[1].split()[1] == "6"
    assert said.count("(5 cases)") == 3


def test_a_class_that_only_one_ever_finds_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    compare(experiment("a", dice(1)), experiment("b", dict.fromkeys(CASES, (0.5, None))))
    said = capsys.readouterr().out
    assert "2: the difference in Dice leaves out cases where only one of the two has a number: 6 of vessel" in said


# what is unfair


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        ({"identity": {"dataset": "other", "checkpoint": "final"}}, "another dataset: digest other, not data"),
        ({"identity": {"dataset": "data", "checkpoint": "best"}}, "another checkpoint: best, not final"),
        ({"n_ref": 90}, "other references of 6 cases, which the difference leaves out: a, b, c ..."),
        ({"scores": dice(2, "abcd")}, "other cases: 4, not 6; 4 in common, the difference is over these"),
        ({"scores": dice(2, "uvwxyz")}, "other cases: none in common, so there is no difference to show"),
        ({"scores": dice(2, "fedcba")}, "other splits: cases lie in other folds"),
        (
            {"settings": {"evaluate": {**SETTINGS["evaluate"], "nsd_tolerance_mm": 1.0}}},
            "scored otherwise: evaluate.nsd_tolerance_mm is 1.0, not 2.0",
        ),
        (
            {"labels": {**LABELS, "names": {"background": [0], "liver": [1], "spleen": [2]}}},
            "other classes: liver/spleen, not liver/vessel",
        ),
        (
            {"set_now": {"train.epochs": 77}},
            "params.yaml has changed since these results were made: train.epochs is 77, was 50",
        ),
        (
            {"settings": {"train": {**SETTINGS["train"], "epochs": [True]}}, "set_now": {"train.epochs": None}},
            "params.yaml has changed since these results were made: train.epochs is null, was [true]",
        ),
    ],
)
def test_what_makes_a_comparison_unfair_is_said(
    changes: dict[str, Any], remark: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = changes.pop("scores", dice(2))
    compare(experiment("a", dice(1)), experiment("b", scores, **changes), "--out", "table.csv")
    said = notes(capsys.readouterr().out)
    assert any(note.startswith(f"2: {remark}") for note in said), said
    assert remark in table()[1]["remarks"]
    assert not any(note.startswith("1") for note in said)


def test_settings_that_are_not_known_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a fold alone params.yaml is not looked for, of the cross-validation alone nothing is known."""
    folder = experiment("a", dice(1), set_now={"train.epochs": 77})
    alone = Path("summary.json")
    write(alone, {**content([row(case, dice(2)[case], "results/fold_0") for case in CASES]), "members": {}})
    compare(folder, f"{folder}/results/fold_0", f"{folder}/results/fold_1/summary.json", alone)
    said = notes(capsys.readouterr().out)
    assert [note for note in said if "settings" in note or "params.yaml" in note] == [
        "1: params.yaml has changed since these results were made: train.epochs is 77, was 50",
        "2, 3: of its settings only those of train, validate, evaluate are known",
        "4: its settings are not known",
    ]


def test_folds_of_different_settings_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    folder = experiment("a", dice(1))
    path = Path(folder, "results/fold_1/summary.json")
    write(path, {**json.loads(path.read_text()), "identity": {"dataset": "data", "training": "two"}})
    compare(folder)
    assert "1: its folds were made with different settings or data" in capsys.readouterr().out


def test_numbers_of_a_class_stand_under_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Not under that of another dataset's class with the same value in the files."""
    other = {**LABELS, "names": {"background": [0], "vessel": [1], "spleen": [2]}}
    compare(experiment("a", dice(1)), experiment("b", dice(2), labels=other), "--out", "table.csv")
    means = np.mean(list(dice(2).values()), 0)
    second = table()[1]
    assert float(second["Dice_vessel"]) == pytest.approx(means[0])
    assert float(second["Dice_spleen"]) == pytest.approx(means[1])
    assert second["Dice_liver"] == second.get("difference_Dice_vessel", "") == second.get("difference_Dice", "") == ""
    (vessel,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("vessel")]
    assert f"{means[0]:.4f}" in vessel


# settings


def test_settings_are_those_that_the_results_were_made_with(capsys: pytest.CaptureFixture[str]) -> None:
    recorded = {name: {**SETTINGS[name]} for name in ("train", "validate", "evaluate")}
    recorded["train"]["epochs"] = 9
    runtime = {"runtime.device": "cpu", "plan.overrides.batch_size": {"2d": 4}}
    compare(
        experiment("a", dice(1)),
        experiment("b", dice(2), settings=recorded, set_now={"train.epochs": 9, **runtime}),
        experiment("c", dice(3)),
        "--out",
        "table.csv",
    )
    said = capsys.readouterr().out
    shown = said.partition("Settings that differ\n\n")[2].partition("\n\n")[0]
    assert [" ".join(line.split()) for line in shown.splitlines()] == [
        "1 2 3",
        "plan.overrides.batch_size 2 {2d: 4} 2",
        "train.epochs 50 9 50",
    ]
    assert [line["params.train.epochs"] for line in table()] == ["50", "9", "50"]
    assert [line["params.plan.overrides.batch_size"] for line in table()] == ["2", '{"2d": 4}', "2"]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("train.best.fitness", ({"dice_mean": 1.0}, {"dice_liver": 1.0})),
        ("train.loss.class_weights", ({"liver": 2.0}, {"vessel": 2.0})),
        ("evaluate.nsd_tolerance_mm", ({"liver": 2.0, "vessel": 1.0}, {"liver": 2.0, "kidneys": 1.0})),
        ("plan.overrides.patch_size", ({"2d": [64, 64]}, {"3d_fullres": [64, 64, 64]})),
        ("plan.normalisation", ({"T1": "ct"}, {"T2": "ct"})),
        ("ensemble.weights", ({"2d": 1.0}, {"3d_fullres": 1.0})),
        ("search.ranges", ({"train.seed": [0, 1]}, {"train.epochs": [1, 2]})),
        ("download.md5", ({"Task01_A": "0"}, {"Task02_B": "0"})),
    ],
)
def test_a_setting_whose_keys_are_chosen_is_compared_as_a_whole(key: str, values: tuple[Any, Any]) -> None:
    assert settings.differing([params.put(SETTINGS, key, value) for value in values]) == {key: list(values)}


def test_a_setting_that_one_version_lacks_does_not_count() -> None:
    older = {**SETTINGS, "train": {key: value for key, value in SETTINGS["train"].items() if key != "ema"}}
    assert settings.differing([older, SETTINGS]) == {}


def test_tolerances_of_other_classes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    of = [
        {**SETTINGS, "evaluate": {**SETTINGS["evaluate"], "nsd_tolerance_mm": {name: 2.0}}}
        for name in ("liver", "vessel")
    ]
    compare(*(experiment(str(i), dice(i), settings=one, set_now=one) for i, one in enumerate(of)))
    said = notes(capsys.readouterr().out)
    assert "2: scored otherwise: evaluate.nsd_tolerance_mm is {vessel: 2.0}, not {liver: 2.0}" in said


# what is read


def test_several_configurations_have_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    members = {name: {"settings": {}} for name in ("2d", "3d_fullres")}
    folder = experiment("a", dice(1), members=members)
    for name, seed in (("2d", 2), ("3d_fullres", 3)):
        for fold, cases in enumerate(("abc", "def")):
            rows = [row(case, dice(seed)[case], f"results/{name}/fold_{fold}/validation_final") for case in cases]
            one = {**content(rows, str(fold)), "configuration": name}
            del one["members"]
            write(Path(folder, f"results/{name}/fold_{fold}/validation_final/summary.json"), one)
            write(Path(folder, f"results/{name}/fold_{fold}/validation_best/summary.json"), {"not": "read"})
    compare(folder, "--out", "table.csv")
    assert [line["of"] for line in table()] == ["2d + 3d_fullres", "2d", "3d_fullres"]
    assert float(table()[2]["Dice"]) == pytest.approx(np.mean(list(dice(3).values())))
    shutil.rmtree(f"{folder}/results/fold_0")
    shutil.rmtree(f"{folder}/results/fold_1")
    compare(f"{folder}/results", "--out", "table.csv")
    assert [line["of"] for line in table()] == ["2d", "3d_fullres"]
    assert "all 2" in capsys.readouterr().out


def test_a_summary_of_nnunet_is_a_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Paths, NaN and missing numbers as it writes them."""
    one = experiment("a", dice(1, "abc") | dice(4, "def"))
    other = dice(2, "abc")
    rows = [row(case, other[case], "") for case in "abc"]
    for each in rows:
        each["prediction_file"] = f"/nnUNet_results/D/T__P__3d_fullres/fold_0{each['prediction_file']}"
        each["metrics"] = {key: {"Dice": values["Dice"], "n_ref": 100} for key, values in each["metrics"].items()}
    rows[2]["metrics"]["2"]["Dice"] = math.nan
    path = Path("nnUNet_results/D/T__P__3d_fullres/fold_0/validation/summary.json")
    write(path, {"foreground_mean": {}, "mean": {}, "metric_per_case": rows})
    assert "NaN" in path.read_text()
    compare(one, path, path.parent, "--out", "table.csv")
    _, file, folder = table()
    assert file["folds"] == folder["folds"] == "0"
    assert float(file["Dice_vessel"]) == pytest.approx(np.mean([other[case][1] for case in "ab"]))
    assert file["difference_Dice_vessel_cases"] == "2"
    assert file["hd95_mm"] == ""
    said = notes(capsys.readouterr().out)
    assert "2, 3: other cases: 3, not 6; 3 in common, the difference is over these" in said
    assert not any("checkpoint" in note or "dataset" in note or "splits" in note for note in said)
    compare(path, one, "--out", "table.csv")
    assert table()[0]["Dice_vessel"] == file["Dice_vessel"]
    assert "1" not in {
        line.split()[0] for line in capsys.readouterr().out.partition("Dice by class")[2].split("\n")[3:5]
    }


def test_what_has_no_results_is_named_all_at_once(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    good = experiment("a", dice(1))
    Path("experiments/b c").mkdir()
    shutil.copy(f"{good}/params.yaml", "experiments/b c")
    Path("experiments/README.md").write_text("# notes")
    Path("broken.json").write_text("{")
    write(Path("other.json"), {"metric_per_case": []})
    paths = [good, "experiments/b c", "experiments/README.md", "broken.json", "other.json", "absent"]
    with pytest.raises(SystemExit) as ended:
        compare(*paths)
    assert ended.value.code == 2
    assert "nothing is compared: 5 problems" in caplog.text
    assert "run: snakemake --cores all --directory 'experiments/b c'" in caplog.text
    for path in paths[1:]:
        assert f"where:    {path}" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        compare(*paths, "--only-finished")
    left_out = [record.getMessage() for record in caplog.records if record.getMessage().startswith("left out: ")]
    assert left_out[0] == "left out: experiments/b c: no results: an experiment that has not come to a summary"
    assert len(left_out) == 5
    assert not any("\n" in line for line in left_out)
    assert "1  experiments/a" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        compare("absent", "--only-finished")
    assert ended.value.code == 2


def test_a_case_of_two_folds_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    folder = Path(experiment("a", dice(1)))
    shutil.copytree(folder / "results/fold_0", folder / "results/fold_2")
    with pytest.raises(SystemExit):
        compare(folder)
    assert "cases that come twice\n  where:    experiments/a\n  found:    a, b, c" in caplog.text


# what is shown


def test_tables_fit_a_terminal_and_lose_no_column(capsys: pytest.CaptureFixture[str]) -> None:
    folders = [experiment(f"quite_a_long_name_number_{i}", dice(i)) for i in range(12)]
    compare(*folders)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 100
    means = [np.mean(list(dice(i).values()), 0)[0] for i in range(12)]
    of_liver = " ".join(line for line in said.splitlines() if line.startswith("liver"))
    assert all(f"{mean:.4f}" in of_liver for mean in means)
    assert "12 - 1" in said


def test_markdown_says_the_same() -> None:
    compare(experiment("a|b", dice(1)), experiment("c", dice(2, "abcd")), "--out", "table.md")
    text = Path("table.md").read_text()
    assert "| 1 | experiments/a\\|b | 3d_fullres | 6 | all 2 | final | " in text
    assert "- 2: other cases: 4, not 6" in text
    tables = [[line for line in part.splitlines() if line[0] == "|"] for part in text.split("\n\n")]
    for lines in filter(None, tables):
        assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_a_file_of_another_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        compare("a", "--out", "table.xlsx")
    assert ended.value.code == 2
    assert "ends in .csv or .md" in capsys.readouterr().err


# the real thing


def test_two_experiments_never_touch_each_other(finished: Project, tmp_path: Path) -> None:
    """The second has the raw data of the first, and takes the preprocessed cases that it has alike."""
    first, second = (tmp_path / "experiments" / name for name in ("a", "b"))
    shutil.copytree(finished.folder, first)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in first.rglob("*")}
    dataset = "experiments/a/data/raw/Dataset000_Phantoms"
    command.main(["init", str(second), "--from", str(first), "--dataset", dataset, "--set", "train.epochs=1"])
    assert yaml.safe_load((second / "params.yaml").read_text())["dataset"] == "../a/data/raw/Dataset000_Phantoms"
    call = Project(tmp_path).command("results/fold_0/summary.json")
    said = run([*call, "--directory", "experiments/b"], tmp_path)
    assert "3d_fullres: 0 cases preprocessed, 5 were there" in said
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in first.rglob("*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["experiments"]
    cases = "data/preprocessed/Dataset000_Phantoms/3d_fullres/cases"
    assert (first / cases / "phantom_000.image.npy").samefile(second / cases / "phantom_000.image.npy")
    compare("experiments/a", "experiments/b", "--params", second / "params.yaml", "--out", "table.csv")
    lines = table()
    assert [line["params.train.epochs"] for line in lines] == ["3", "1"]
    assert "params.dataset" not in lines[0]
    assert lines[0]["dataset_digest"] == lines[1]["dataset_digest"]
    assert [line["cases"] for line in lines] == ["5", "3"]
    assert lines[1]["difference_Dice_cases"] == "3"
    remarks = lines[1]["remarks"].split("; intervals over 3 cases are too narrow; p is at least 0.25")
    assert remarks[0] == "other cases: 3, not 5; 3 in common, the difference is over these"
