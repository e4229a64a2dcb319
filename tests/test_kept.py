"""A step that is killed goes on where it stopped, and says what it would have said."""

import functools
from pathlib import Path

import pytest
from tiny import params
from validations import member

from segpipe import digest
from segpipe.inference import calibrate, choice, ensemble, mean_softmax, postprocess_crossval, postprocessing
from segpipe.inference.kept import Kept

pytest_plugins = ["phantom_fixtures"]

NAMES = ["2d", "3d_fullres"]
SUMMARY = Path("results/fold_0/summary.json")
CROSSVAL = Path("results/crossval")


class Killed(Exception):
    """In place of a signal: nothing of the process is left but its files."""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def calls(monkeypatch, module, name, last=None):
    """Which cases a function of a module is called for; it is killed in the call after the `last` one."""
    real, seen = getattr(module, name), []

    @functools.wraps(real)
    def counted(*args):
        # named, or by its softmax files
        seen.append(next((arg for arg in args if isinstance(arg, str)), None) or args[0][0].stem)
        if last is not None and len(seen) > last:
            raise Killed
        return real(*args)

    monkeypatch.setattr(module, name, counted)
    return seen


def settings(**changes):
    return params(configurations=NAMES, folds=[0], evaluate__bootstrap_resamples=100, **changes)


def steps(cases, ids):
    """Each step, where it works on a case, and its result."""
    folders = [member(cases, name, seed, cases=ids, near=2.0) for seed, name in enumerate(NAMES)]
    prepared, given = cases.cases, settings(predict__models="best")
    ensemble.ensemble(prepared, folders, SUMMARY, settings())
    # the best are both together, so that their mean is what rules are learnt of
    choice.choose(prepared, folders, CROSSVAL / "model_choice.json", settings())
    content = digest.read_json(CROSSVAL / "model_choice.json")
    digest.write_json(CROSSVAL / "model_choice.json", {**content, "chosen": NAMES})
    rules = CROSSVAL / "postprocessing.json"
    learn = functools.partial(postprocess_crossval.learn, prepared, [SUMMARY], folders, rules, given)
    return {
        "ensemble": (ensemble, "scored", SUMMARY, lambda: ensemble.ensemble(prepared, folders, SUMMARY, settings())),
        "choose": (
            *(mean_softmax, "label_maps", CROSSVAL / "choice.json"),
            lambda: choice.choose(prepared, folders, CROSSVAL / "choice.json", settings()),
        ),
        "mean of postprocess": (mean_softmax, "label_map", rules, learn),
        "rules of postprocess": (postprocessing, "_score", rules, learn),
        "calibrate": (
            *(calibrate, "_draw", CROSSVAL / "calibration.json"),
            lambda: calibrate.calibrate(prepared, folders, CROSSVAL / "calibration.json", settings()),
        ),
    }


@pytest.mark.parametrize("name", ["ensemble", "choose", "mean of postprocess", "rules of postprocess", "calibrate"])
def test_a_killed_step_does_no_case_twice(prepared, monkeypatch, name):
    ids = prepared.cases.training[:3]
    module, function, out, run = steps(prepared, ids)[name]
    run()
    expected, segmentations = out.read_text(), {path: path.read_bytes() for path in SUMMARY.parent.rglob("*.nii.gz")}
    out.unlink()
    with monkeypatch.context() as patch:
        calls(patch, module, function, last=2)
        with pytest.raises(Killed):
            run()
    assert not out.exists()
    with monkeypatch.context() as patch:
        assert calls(patch, module, function) == []
        seen = calls(patch, module, function)
        run()
    assert seen[0] == ids[2]
    assert seen.count(ids[0]) == seen.count(ids[2]) - 1
    assert out.read_text() == expected
    assert {path: path.read_bytes() for path in SUMMARY.parent.rglob("*.nii.gz")} == segmentations
    assert [path for path in Path().rglob("state/*/*") if path.is_dir()] == []  # what is done is kept no longer


def test_what_others_left_is_neither_taken_nor_kept(tmp_path):
    first = Kept.of(tmp_path, ["one"])
    assert first.each("part", ["a"], str.upper, 1) == ["A"]
    assert first.each("part", ["a", "b"], str.title, 1) == ["A", "B"]
    other = Kept.of(tmp_path, ["other"])
    assert other.each("part", ["a"], lambda case: case * 2, 1) == ["aa"]
    assert Kept.of(tmp_path, ["one"]).each("part", ["a"], lambda case: case * 3, 1) == ["aaa"]


def test_a_case_without_its_file_is_not_done(tmp_path):
    kept, written = Kept.of(tmp_path, ["one"]), []

    def file(case):
        return kept.path(f"{case}.txt")

    def write(case):
        written.append(case)
        file(case).write_text(case)

    for _ in range(2):
        kept.path("").mkdir(parents=True, exist_ok=True)
        assert kept.each("part", ["a", "b"], write, 1, file) == [None, None]
    assert written == ["a", "b"]
    file("a").unlink()
    kept.each("part", ["a", "b"], write, 1, file)
    assert written == ["a", "b", "a"]
