"""`segpipe plan`: the plan of a dataset with its reasons, made or not yet made."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import DATA
from volumes import REPO

from segpipe import digest
from segpipe.cli.main import main
from segpipe.data.cases import Cases
from segpipe.params import load
from segpipe.prepare import planning

FOLDER = Path("data/preprocessed/Dataset000_Phantoms")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with nnU-Net's settings for the generated dataset."""
    settings = yaml.safe_load((REPO / "params.yaml").read_text())
    settings["plan"]["overrides"] = dict.fromkeys(settings["plan"]["overrides"])
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def leave(*names: str) -> None:
    """Files that earlier rules would have written, of ten equal cases."""
    cases = [f"case_{number}" for number in range(10)]
    labels = {"names": {"background": [0], "a": [1]}, "regions_order": None, "ignore": None, "file_values": [0, 1]}
    content = {
        "cases.json": {"channel_names": ["CT"], "labels": labels, "training": dict.fromkeys(cases), "test": {}},
        "fingerprint.json": {
            "cases": {case: {"spacing_mm": [2.0, 1.0, 1.0], "shape_after_crop": [40, 60, 70]} for case in cases},
            "median_relative_size_after_cropping": 1.0,
            "channels": {"0": {"mean": 1.0}},
        },
    }
    for name in names:
        digest.write_json(FOLDER / name, content[name])


def test_what_would_be_planned_is_shown(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave("cases.json", "fingerprint.json")
    main(["plan"])
    said = capsys.readouterr().out
    assert "3d_fullres: plain, spacing 2 x 1 x 1 mm, patch 40 x 64 x 80, batch 2" in said
    assert "median" not in said
    main(["plan", "--explain"])
    said = capsys.readouterr().out
    for text in ("target spacing", "normalisation of channel 'CT': ct", "2d\n  spacing", "not planned\n  3d_lowres: a"):
        assert text in said


def test_a_plan_that_was_made_is_shown(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave("cases.json", "fingerprint.json")
    configuration = {"architecture": "resenc", "spacing_mm": [3, 3], "patch_size": [32, 40], "batch_size": 5}
    made = {"2d": {**configuration, "reasons": ["as I like it"]}}
    plan = {"reasons": ["from afar"], "not_planned": {}, "configurations": made}
    for folder in (FOLDER, project / "elsewhere"):
        digest.write_json(folder / "plan.json", plan)
    for arguments in ([], ["--preprocessed", "elsewhere"]):
        main(["plan", "--explain", *arguments])
        said = capsys.readouterr()
        assert "2d: resenc, spacing 3 x 3 mm, patch 32 x 40, batch 5" in said.out
        assert "plan\n  from afar\n2d\n  as I like it" in said.out
        # there is nothing elsewhere to plan from
        assert ("is another plan than params.yaml asks for now" in said.err) == (not arguments)


def test_a_plan_that_still_holds_is_shown_without_a_word(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave("cases.json", "fingerprint.json")
    params = load()
    planning.write(Cases.read(FOLDER / "cases.json", params.dataset), FOLDER / "fingerprint.json", params,
                   FOLDER / "plan.json")  # fmt: skip
    capsys.readouterr()
    main(["plan"])
    assert capsys.readouterr().err == ""


def test_a_plan_of_another_file_is_shown(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave("cases.json")
    leave("fingerprint.json")
    settings = yaml.safe_load(Path("params.yaml").read_text())
    settings["plan"]["file"] = str(DATA / "nnunet_plans_file.json")
    Path("params.yaml").write_text(yaml.safe_dump(settings))
    main(["plan", "--explain"])
    said = capsys.readouterr().out
    assert "3d_cascade_fullres: resenc" in said
    assert "taken from nnunet_plans_file.json" in said


@pytest.mark.parametrize("names", [[], ["cases.json"]])
def test_nothing_to_plan_from_says_what_to_run(
    project: Path, names: list[str], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(*names)
    with pytest.raises(SystemExit) as end:
        main(["plan"])
    assert end.value.code == 2
    assert f"run: snakemake --cores all {FOLDER}/plan.json" in capsys.readouterr().err


def test_planning_loads_no_torch() -> None:
    code = "import segpipe.cli.plan, segpipe.prepare.planning, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout.split()


def test_overrides_beside_a_file_are_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = yaml.safe_load(Path("params.yaml").read_text())
    settings["plan"] |= {"file": "plan.json", "normalisation": {"CT": "zscore"}}
    settings["plan"]["overrides"]["batch_size"] = 2
    Path("params.yaml").write_text(json.dumps(settings))
    with pytest.raises(SystemExit):
        main(["plan"])
    assert "set to null: overrides.batch_size, normalisation" in capsys.readouterr().err
