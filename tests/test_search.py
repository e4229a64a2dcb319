"""A job of a search with real, tiny trainings: what it tells the study, what it leaves, and what ends it."""

import csv
import io
import logging
import signal
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from tiny import params

from segpipe import digest
from segpipe.errors import SegpipeError
from segpipe.params import changed
from segpipe.prepare import planning
from segpipe.search import identity, results, table, trial, worker
from segpipe.search.study import REASON, Search
from segpipe.search.trial import Data
from segpipe.training import interrupt, job
from segpipe.training.failures import TrainingFailed

pytest_plugins = ["phantom_fixtures"]

REPO = Path(__file__).resolve().parents[1]
RATES = {"train.optimiser.learning_rate": [0.01, 0.02, 0.03, 0.04]}


def settings(**changes):
    small = {"train__epochs": 2, "train__iterations_per_epoch": 1, "train__val_iterations_per_epoch": 1}
    grid = {"search__ranges": RATES, "search__sampler": "grid", "search__pruner__name": "none"}
    return params(**{**small, **grid, **changes})


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """Of a training: one takes longer than the rest of it."""
    monkeypatch.setattr(job.curves, "draw", lambda path, rows, classes: path.touch())


@pytest.fixture
def data(prepared) -> Data:
    return Data(prepared.store, prepared.splits, prepared.root / "prepared/fingerprint.json")


@pytest.fixture
def work(data, tmp_path):
    """Runs a worker; the study as it is then."""

    def run(name: str = "worker_0", **changes) -> Search:
        chosen = settings(**changes)
        worker.work(data, chosen, tmp_path / f"results/search/{name}.json", lambda *_: None)
        return study(tmp_path, data, chosen)

    return run


def study(folder, data, chosen) -> Search:
    return Search(folder / "results/search" / identity.of_study(data, chosen)["digest"], chosen, None)


def states(search: Search) -> list[str]:
    return [one.state.name for one in search.trials]


def failing(monkeypatch, number: int, error: BaseException) -> None:
    """The n-th training raises."""
    train, calls = job.train, []

    def fail(*given):
        calls.append(1)
        if len(calls) == number:
            raise error
        train(*given)

    monkeypatch.setattr(job, "train", fail)


def test_all_trials_are_trained_and_the_best_is_written_where_people_and_the_pipeline_find_it(
    work, data, tmp_path, monkeypatch
):
    search = work(search__trials=3)
    assert states(search) == ["COMPLETE"] * 3 + ["WAITING"]
    out = tmp_path / "results/search"
    assert digest.read_json(out / "worker_0.json") == {"study": search.folder.name, "trials": 3}

    text = changed((REPO / "params.yaml").read_text(), {"train.epochs": 2}, "params.yaml")
    (tmp_path / "params.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    chosen = settings(search__trials=3)
    results.write([out / "worker_0.json"], chosen, out)
    rows = list(csv.DictReader((out / "trials.csv").open()))
    assert [row["number"] for row in rows] == ["0", "1", "2"]
    assert [float(row["value"]) for row in rows] == [pytest.approx(one.value) for one in search.trials[:3]]
    assert [row["epochs"] for row in rows] == ["2"] * 3
    best = max(rows, key=lambda row: float(row["value"]))
    lines = text.splitlines()
    different = [line for line in (out / "best_params.yaml").read_text().splitlines() if line not in lines]
    rate = float(best["train.optimiser.learning_rate"])
    assert rate == 0.01 or [line.split("#")[0].strip() for line in different] == [f"learning_rate: {rate}"]

    kept = {path.relative_to(search.folder).parts[0] for path in search.folder.rglob("*.pth")}
    assert kept == {f"trial_{best['number']}"}
    monkeypatch.setattr(job, "Setup", None)  # nothing is trained: the pipeline has the best trial's training
    best_settings = settings(train__optimiser__learning_rate=rate)
    job.train(data.store, data.splits, "0", tmp_path / "results/3d_fullres/fold_0", best_settings)
    metrics = (tmp_path / "results/3d_fullres/fold_0/metrics.csv").read_text()
    assert metrics == (search.folder / f"trial_{best['number']}/3d_fullres/fold_0/metrics.csv").read_text()


def test_while_it_goes_on_there_is_a_table_of_what_has_ended_so_far(work, data, tmp_path, monkeypatch):
    failing(monkeypatch, 2, SegpipeError("the disk is full"))
    with pytest.raises(SegpipeError):
        work(search__trials=2)
    (path,) = tmp_path.glob("results/search/*/trials.csv")
    rows = list(csv.DictReader(path.open()))
    assert [(row["number"], row["state"]) for row in rows] == [("0", "complete"), ("1", "running")]
    assert float(rows[0]["value"]) == pytest.approx(study(tmp_path, data, settings()).trials[0].value)


def test_every_message_of_a_training_says_which_trial_it_is_of(work, monkeypatch):
    said, handler = io.StringIO(), logging.StreamHandler()
    handler.setStream(said)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)
    search = work(search__trials=2)
    *lines, last = said.getvalue().splitlines()
    assert last.startswith("search ")
    assert lines[0].startswith("trial 0: of 2: train.optimiser.learning_rate: ")
    assert {line.split(":")[0] for line in lines} == {"trial 0", "trial 1"}
    assert any(": epoch 2" in line for line in lines)
    (log,) = search.folder.glob("trial_1/3d_fullres/fold_0/state/*/train.log")
    assert "trial 1" not in log.read_text()


def test_a_worker_that_has_nothing_to_do_ends_at_once(work, monkeypatch):
    work(search__trials=1)
    monkeypatch.setattr(job, "train", None)
    assert states(work("worker_1", search__trials=1))[:2] == ["COMPLETE", "WAITING"]


def test_a_training_that_fails_by_its_settings_is_a_failed_trial(work, tmp_path, monkeypatch):
    failing(monkeypatch, 1, TrainingFailed("the training diverged\n  found: nan"))
    search = work(search__trials=2)
    assert states(search)[:2] == ["FAIL", "COMPLETE"]
    assert search.trials[0].user_attrs[REASON].startswith("the training diverged")
    assert "the training diverged found: nan" in table.of(search)


def test_a_training_that_really_diverges_is_a_failed_trial(work):
    search = work(
        search__trials=1, search__ranges={"train.optimiser.learning_rate": [1e30, 1e29]}, train__precision="off"
    )
    assert states(search)[0] == "FAIL"
    assert [path.name for path in search.folder.rglob("*.pth")] == ["diverged.pth"]


def test_values_that_do_not_go_together_are_a_failed_trial(work):
    both = {"train.loss.region_weight": [0.0, 1.0], "train.loss.voxel_weight": [0.0, 1.0]}
    search = work(search__ranges=both, search__trials=4)
    assert sorted(states(search)) == ["COMPLETE"] * 3 + ["FAIL"]
    (failed,) = (one for one in search.trials if one.state == TrialState.FAIL)
    assert search.values(failed) == dict.fromkeys(both, 0.0)
    assert "nothing would be learnt" in failed.user_attrs[REASON]


def test_bad_input_stops_the_search_and_leaves_the_trial_for_later(work, data, tmp_path, monkeypatch):
    for _ in range(3):
        with monkeypatch.context() as patched:
            failing(patched, 1, SegpipeError("the disk is full"))
            with pytest.raises(SegpipeError, match="disk"):
                work(search__trials=1)
    assert states(study(tmp_path, data, settings(search__trials=1)))[0] == "RUNNING"
    assert not (tmp_path / "results/search/worker_0.json").exists()
    assert states(work(search__trials=1))[0] == "COMPLETE"


def test_what_nobody_expects_is_raised_and_tried_once_more(work, monkeypatch):
    for _ in range(2):
        with monkeypatch.context() as patched:
            failing(patched, 1, RuntimeError("CUDA error"))
            with pytest.raises(RuntimeError, match="CUDA error"):
                work(search__trials=2)
    search = work(search__trials=2)
    assert states(search)[:2] == ["FAIL", "COMPLETE"]
    assert search.trials[0].user_attrs[REASON] == "RuntimeError: CUDA error"


def test_a_worker_that_is_asked_to_end_saves_and_the_next_one_continues(work, data, tmp_path):
    def ask(self, rows):
        report(self, rows)
        signal.raise_signal(signal.SIGTERM)

    report = trial._Watch.look
    trial._Watch.look = ask
    try:
        with pytest.raises(interrupt.Interrupted) as ended:
            work(search__trials=1)
    finally:
        trial._Watch.look = report
    assert ended.value.code == 128 + signal.SIGTERM
    assert list(study(tmp_path, data, settings()).trials[0].intermediate_values) == [1]
    search = work(search__trials=1)
    assert list(search.trials[0].intermediate_values) == [1, 2]
    (run,) = search.folder.glob("trial_0/3d_fullres/fold_0/state/*/run.json")
    assert digest.read_json(run)["start"] == "continues after epoch 1"


def test_a_pruned_trial_ends_there(work, monkeypatch):
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda self: self.number == 1)
    search = work(search__trials=2)
    assert states(search)[:2] == ["COMPLETE", "PRUNED"]
    assert [len(one.intermediate_values) for one in search.trials[:2]] == [2, 1]


def test_several_folds_are_judged_by_their_mean(work):
    search = work(search__trials=1, search__folds=[0, 1])
    values = [
        trial.read_rows(search.folder / f"trial_0/3d_fullres/fold_{fold}/metrics.csv")[-1]["dice_ema"]
        for fold in (0, 1)
    ]
    one = search.trials[0]
    assert one.value == pytest.approx(sum(values) / 2)
    assert list(one.intermediate_values) == [1, 2, 3, 4]
    assert one.intermediate_values[4] == pytest.approx(one.value)


def test_the_value_is_that_of_the_checkpoint_that_counts():
    rows = [{"epoch": n, "dice_ema": ema, "fitness_ema": fitness} for n, ema, fitness in ((1, 0.3, 0.3), (2, 0.2, 0.4))]
    rows.append({"epoch": 3, "dice_ema": 0.1, "fitness_ema": 0.1})
    assert trial.judged(rows, params()) == 0.1
    assert trial.judged(rows, params(validate__checkpoint="best")) == 0.2
    assert trial.judged([*rows, {"epoch": 4, "dice_ema": None, "fitness_ema": None}], params()) == 0.1
    assert trial.judged([{"epoch": 1, "dice_ema": None, "fitness_ema": None}], params()) is None


def test_another_plan_is_trained_on_the_same_cases(data, tmp_path):
    values = {
        "plan.overrides.batch_size": 3,
        "plan.overrides.features_base": 8,
        "plan.overrides.patch_size": [24, 16, 16],
    }
    chosen, store, epochs = trial._prepared(values, data, params())
    assert (store.planned.batch_size, store.planned.features_per_stage[0]) == (3, 8)
    assert store.planned.patch_size == [24, 16, 16]
    assert (store.digest, store.folder, epochs) == (data.store.digest, data.store.folder, 3)
    planning.write(store.cases, data.fingerprint, chosen, tmp_path / "plan.json")
    in_file = digest.read_json(tmp_path / "plan.json")["configurations"]["3d_fullres"]
    assert in_file == store.planned.__dict__  # so the pipeline's training has the digest of the trial's


def test_a_plan_that_prepares_cases_otherwise_is_refused(data):
    with pytest.raises(TrainingFailed, match="not prepared"):
        other = replace(data.store, plan={**data.store.plan, "transpose_forward": [1, 0, 2]})
        trial._prepared({"plan.overrides.batch_size": 3}, replace(data, store=other), params())


def test_a_study_is_known_by_all_that_decides_it(data, monkeypatch):
    def of(**changes) -> str:
        return identity.of_study(data, settings(**changes))["digest"]

    before = of()
    assert of(train__optimiser__learning_rate=0.5, search__trials=9) == before
    assert len({before, of(train__seed=1), of(search__folds=[1]), of(train__full_validation__every=1)}) == 4
    for store in (replace(data.store, digest="of other cases"), replace(data.store, plan=other_plan(data.store))):
        assert identity.of_study(replace(data, store=store), settings())["digest"] != before
    monkeypatch.setattr(digest, "of_code", lambda rule: "other")
    assert of() != before


def other_plan(store):
    planned = replace(store.planned, batch_size=3)
    return {**store.plan, "configurations": {store.configuration: planned}}


def test_a_trial_that_another_job_is_at_is_waited_for(work, data, tmp_path, monkeypatch):
    search = work(search__trials=1)
    taken = Search(search.folder, settings(search__trials=2), 2).take()
    marker = tmp_path / "results/search/worker_0.json"

    def end(seconds):
        search.study.tell(taken.number, 0.0)
        taken.lock.close()

    monkeypatch.setattr(results.time, "sleep", end)
    results._wait(search, [marker])
    assert marker.exists()


def test_a_trial_that_was_left_is_no_result(work, tmp_path):
    search = work(search__trials=1)
    Search(search.folder, settings(search__trials=2), 2).take().lock.close()
    marker = tmp_path / "results/search/worker_0.json"
    with pytest.raises(SegpipeError, match="trial 1, and no job that trains it"):
        results._wait(search, [marker])
    assert not marker.exists()  # so that the next call starts a worker


def test_a_search_of_failures_says_why(work, tmp_path, monkeypatch):
    failing(monkeypatch, 1, TrainingFailed("the training diverged"))
    work(search__trials=1)
    with pytest.raises(SegpipeError, match="no trial was finished") as error:
        results.write(
            [tmp_path / "results/search/worker_0.json"], settings(search__trials=1), tmp_path / "results/search"
        )
    assert "the training diverged" in str(error.value)


def test_without_optuna_it_says_what_to_install(monkeypatch):
    from segpipe.search import installed

    installed.require_optuna()
    monkeypatch.setattr(installed, "find_spec", lambda name: None)
    with pytest.raises(SegpipeError, match=r"segpipe\[search\]"):
        installed.require_optuna()
