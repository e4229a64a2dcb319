"""The trials of a study: who takes which, what a killed job leaves, what the sampler is given. No training here."""

import json
import multiprocessing

import pytest
from optuna.trial import TrialState
from tiny import params

from segpipe.search import kept
from segpipe.search.study import PRESENT, REASON, Search

RANGES = {
    "train.optimiser.learning_rate": {"low": 1e-3, "high": 0.1, "log": True},
    "train.accumulate": {"low": 1, "high": 4},
    "train.mirror_axes": [None, [0], [0, 1, 2]],
}


def settings(**changes):
    given = {"search__ranges": RANGES, "search__trials": 4, "search__pruner__startup_trials": 1}
    return params(**{**given, "search__pruner__warmup_epochs": 0, **changes})


@pytest.fixture
def opened(tmp_path):
    """Opens the study as another job does, each time with files of its own."""

    def open_study(**changes) -> Search:
        return Search(tmp_path / "study", settings(**changes), 3)

    return open_study


def killed(taken) -> None:
    """What the kernel does when the job is gone."""
    taken.lock.close()


def states(search: Search) -> list[str]:
    return [one.state.name for one in search.trials]


def test_two_jobs_never_have_the_same_trial_and_begin_as_many_as_wanted(opened):
    jobs = [opened() for _ in range(3)]
    taken = [job.take() for job in jobs] + [job.take() for job in jobs]
    numbers = [one.number for one in taken if one is not None]
    assert numbers == [0, 1, 2, 3]
    assert states(opened()) == ["RUNNING"] * 4
    assert all(opened().is_taken(number) for number in numbers)


def test_jobs_side_by_side_draw_different_values(opened):
    jobs = [opened(search__trials=8) for _ in range(2)]
    taken = [jobs[i % 2].take() for i in range(8)]
    assert len({one.values["train.optimiser.learning_rate"] for one in taken}) == 8


def test_one_after_the_other_the_same_seed_draws_the_same(tmp_path):
    def drawn(name: str, **changes) -> list[dict]:
        search, found = Search(tmp_path / name, settings(search__trials=12, **changes), 3), []
        while (taken := search.take()) is not None:
            found.append(taken.values)
            search.finish(taken, taken.values["train.optimiser.learning_rate"])
            taken.lock.close()
        return found

    assert drawn("a") == drawn("b") != drawn("c", search__seed=1)


def test_the_first_trial_has_the_values_of_params_yaml_where_they_lie_in_the_ranges(opened, tmp_path):
    first = opened().take()
    assert first.values == {"train.optimiser.learning_rate": 0.01, "train.accumulate": 1, "train.mirror_axes": None}
    assert first.trial.user_attrs[PRESENT] is True
    outside = Search(tmp_path / "other", settings(train__accumulate=8), 3).take()
    assert outside.values["train.accumulate"] <= 4
    assert PRESENT not in outside.trial.user_attrs


def test_values_have_the_digits_of_a_person_and_stay_in_their_range(opened):
    search = opened(
        search__trials=20, search__ranges={"train.oversample_foreground": {"low": 0.123456, "high": 0.1235}}
    )
    drawn = [one.values["train.oversample_foreground"] for one in [search.take() for _ in range(20)]]
    assert all(0.123456 <= value <= 0.1235 for value in drawn)
    assert {len(str(value)) for value in drawn} <= {6, 8}  # 0.1235, or the low end


def test_choices_that_are_lists_come_back_as_lists(opened):
    search = opened(search__trials=12)
    drawn = [one.values["train.mirror_axes"] for one in [search.take() for _ in range(12)]]
    assert [0] in drawn
    assert [search.values(one)["train.mirror_axes"] for one in opened().trials] == drawn


def test_a_trial_of_a_killed_job_is_taken_before_a_new_one_with_its_values(opened):
    first = opened().take()
    other = opened().take()
    killed(first)
    again = opened().take()
    assert (again.number, again.values) == (first.number, first.values)
    assert opened().take().number == other.number + 1


def test_a_job_that_was_killed_while_it_drew_loses_no_trial(opened):
    first = opened().take()
    search = opened()
    search.study.sampler = search._sampler(1)
    search.study.ask()  # and no further
    again = opened().take()
    assert again.number == 1
    assert set(again.values) == set(RANGES)
    assert first.number == 0


def test_an_ended_trial_is_not_taken_again(opened):
    search = opened()
    for end in (lambda one: search.finish(one, 0.5), search.prune, lambda one: search.fail(one, "why")):
        taken = search.take()
        end(taken)
        killed(taken)
    assert opened().take().number == 3
    assert states(search)[:3] == ["COMPLETE", "PRUNED", "FAIL"]
    assert search.trials[2].user_attrs[REASON] == "why"


def test_a_trial_that_crashes_is_tried_once_more(opened):
    for expected in (TrialState.RUNNING, TrialState.FAIL):
        search = opened()
        taken = search.take()
        assert taken.number == 0
        search.crash(taken, "RuntimeError: no")
        killed(taken)
        assert opened().trials[0].state == expected


def test_more_trials_later_continue_the_study(opened):
    search = opened(search__trials=2)
    for _ in range(2):
        search.finish(search.take(), 0.5)
    assert opened(search__trials=2).take() is None
    assert opened(search__trials=3).take().number == 2


def test_a_grid_has_every_combination_once_in_another_order_by_another_seed(tmp_path):
    grid = {"train.accumulate": {"low": 1, "high": 4}, "train.loss.region": ["dice", "tversky"]}

    def drawn(name: str, **changes) -> list[tuple]:
        both = {"search__ranges": grid, "search__sampler": "grid", "search__trials": 50, **changes}
        jobs, found = [Search(tmp_path / name, settings(**both), 3) for _ in range(2)], []
        while (taken := jobs[len(found) % 2].take()) is not None:
            found.append(taken)
        return [tuple(one.values.values()) for one in found]

    first, second = drawn("a"), drawn("b", search__seed=1)
    assert len(first) == 8
    assert (
        sorted(first) == sorted(second) == sorted((n, region) for n in (1, 2, 3, 4) for region in ("dice", "tversky"))
    )
    assert first != second
    assert len(drawn("c", search__trials=3)) == 3


@pytest.mark.parametrize(("measure", "best"), [("dice_ema", 1), ("val_loss", 2)])
def test_the_best_is_the_highest_or_of_losses_the_lowest_and_the_first_of_equals(opened, measure, best):
    search = opened(search__measure=measure)
    for value in (0.5, 0.7, 0.2, 0.7 if measure == "dice_ema" else 0.2):
        search.finish(search.take(), value)
    assert search.best().number == best


@pytest.mark.parametrize(("name", "ended"), [("median", True), ("none", False)])
def test_a_trial_below_the_median_is_pruned_where_that_is_wanted(opened, name, ended):
    search = opened(search__pruner__name=name)
    good, bad = search.take(), search.take()
    good.trial.report(0.9, 1)
    search.finish(good, 0.9)
    bad.trial.report(0.1, 1)
    assert bool(bad.trial.should_prune()) == ended


def test_the_warm_up_protects_from_the_pruner(opened):
    search = opened(search__pruner__warmup_epochs=2)
    good, bad = search.take(), search.take()
    for epoch in (1, 2):
        good.trial.report(0.9, epoch)
    search.finish(good, 0.9)
    ended = []
    for epoch in (1, 2):
        bad.trial.report(0.1, epoch)
        ended.append(bool(bad.trial.should_prune()))
    assert ended == [False, True]


def test_hyperband_knows_the_epochs(tmp_path):
    search = Search(tmp_path, settings(search__pruner__name="hyperband", search__pruner__warmup_epochs=5), 3)
    assert (search.study.pruner._min_resource, search.study.pruner._max_resource) == (3, 3)


def test_a_torn_line_costs_nothing(opened, tmp_path):
    """A full disk or a lost node leaves half a line; a job that appends to it would make the study unreadable."""
    search = opened()
    search.finish(search.take(), 0.25)
    journal = tmp_path / "study/journal.log"
    whole = journal.read_text()
    journal.write_text(whole + '{"op_code":6,"worker')
    assert [one.value for one in opened().trials] == [0.25]
    other = opened()
    other.finish(other.take(), 0.75)
    assert [one.value for one in opened().trials] == [0.25, 0.75]
    assert all(json.loads(line) for line in journal.read_text().splitlines())
    assert journal.read_text().startswith(whole)


def all_there_is(folder, numbers) -> None:
    search = Search(folder, settings(search__trials=24, search__sampler="random"), 3)
    while (taken := search.take()) is not None:
        with taken.lock:
            taken.trial.report(0.5, 1)
            search.finish(taken, taken.number)
        numbers.put(taken.number)


def test_processes_at_once_lose_nothing(tmp_path):
    """Four of them: all lines of the journal are whole, no trial is given twice."""
    fork = multiprocessing.get_context("fork")
    numbers = fork.Queue()
    jobs = [fork.Process(target=all_there_is, args=(tmp_path, numbers)) for _ in range(4)]
    for job in jobs:
        job.start()
    given = [numbers.get(timeout=60) for _ in range(24)]
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0] * 4
    assert sorted(given) == list(range(24))
    assert [one.value for one in Search(tmp_path, settings(), 3).trials] == list(range(24))


def test_checkpoints_are_kept_of_the_best_and_of_what_runs(opened):
    search = opened()
    ends = [lambda one: search.finish(one, 0.5), lambda one: search.finish(one, 0.9), search.prune, lambda one: None]
    for end in ends:
        taken = search.take()
        state = taken.folder / "3d_fullres/fold_0/state/abc"
        state.mkdir(parents=True)
        for path in (
            state / "latest.pth",
            state / "metrics.csv",
            state / "diverged.pth",
            taken.folder / "3d_fullres/fold_0/checkpoint_final.pth",
        ):
            path.touch()
        end(taken)
    kept.tidy(search)
    files = {number: {path.name for path in search.folder_of(number).rglob("*.*")} - {".lock"} for number in range(4)}
    ended, whole = (
        {"metrics.csv", "diverged.pth"},
        {"metrics.csv", "diverged.pth", "latest.pth", "checkpoint_final.pth"},
    )
    assert files == {0: ended, 1: whole, 2: ended, 3: whole}
