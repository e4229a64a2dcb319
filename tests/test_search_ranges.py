"""search.ranges: what can be varied, between which values, and what is said of what cannot."""

import pytest
from tiny import labels_of, params

from segpipe.errors import SegpipeError
from segpipe.search import ranges, study

LABELS = labels_of({"background": 0, "liver": 1, "kidneys": 2, "vessel": 3})
RATE = {"train.optimiser.learning_rate": {"low": 1e-3, "high": 0.1, "log": True}}


def refusal(**changes) -> str:
    with pytest.raises(SegpipeError) as error:
        ranges.check(params(**changes), LABELS)
    return str(error.value)


def refusal_of(key: str, given: object, **changes) -> str:
    said = refusal(search__ranges={key: given}, **changes)
    assert f"search.ranges.{key}" in said
    return said


def test_the_projects_own_ranges_are_accepted():
    ranges.check(params(), LABELS)
    ranges.check(params(), None)


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("train.optimiser.learning_rate", {"low": 1e-3, "high": 0.1, "log": True}, (1e-3, 0.1, False, True, None)),
        ("train.accumulate", {"low": 1, "high": 4}, (1, 4, True, False, None)),
        ("train.accumulate", {"low": 2, "high": 8, "step": 2}, (2, 8, True, False, 2)),
        (
            "train.oversample_foreground",
            {"low": 0, "high": 1},
            (0.0, 1.0, False, False, None),
        ),  # a share, though 0 and 1
        ("train.oversample_foreground", {"low": 0, "high": 1, "step": 0.25}, (0.0, 1.0, False, False, 0.25)),
    ],
)
def test_numbers_are_whole_where_the_setting_takes_no_others(key, given, expected):
    one = ranges.of(params(search__ranges={key: given}))[key]
    assert (one.low, one.high, one.whole, one.log, one.step) == expected
    assert type(one.low) is type(expected[0])


@pytest.mark.parametrize(
    ("key", "given", "why"),
    [
        ("train.optimiser.learning_rate", {"low": 0.0, "high": 0.1}, "greater than 0"),
        ("train.oversample_foreground", {"low": 0.5, "high": 1.5}, "less than or equal to 1"),
        ("train.accumulate", {"low": 0, "high": 4}, "greater than or equal to 1"),
        ("train.accumulate", {"low": 1.0, "high": 4.0}, "valid integer"),
        ("train.loss.region", ["dice", "jaccard"], "'dice' or 'tversky'"),
        ("train.loss.region", {"low": 1, "high": 2}, "'dice' or 'tversky'"),
        ("train.loss.class_weights", [None, {"spleen": 2.0}], "spleen"),
        ("train.max_steps", [100, 200], "exactly one of the two"),
        ("plan.overrides.patch_size", [[16, 16, 16], [2, 2, 2]], "greater than or equal to 4"),
    ],
)
def test_a_value_that_the_setting_does_not_take_is_refused_before_anything_runs(key, given, why):
    assert why in refusal_of(key, given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"low": 0.1}, "`low` and `high`"),
        ({"low": 0.1, "high": 0.1}, "low below high"),
        ({"low": True, "high": 2}, "numbers as"),
        ({"low": 0.0, "high": 0.1, "log": True}, "low above 0"),
        ({"low": 0.01, "high": 0.1, "log": True, "step": 0.01}, "no step"),
        ({"low": 0.01, "high": 0.1, "log": 1}, "true or false"),
        ({"low": 0.01, "high": 0.1, "step": 0.5}, "a step above 0"),
        ([0.1, 0.1], "different choices"),
        ([0.1], "two different choices"),
        ([], "two different choices"),
        ("0.1", "a list of choices, or {low"),
        (None, "a list of choices, or {low"),
        ({"low": 0.01, "hihg": 0.1}, "a list of choices, or {low"),
        ({"low": 0.01, "high": 0.1, "every": 2}, "a list of choices, or {low"),
    ],
)
def test_what_is_no_range_is_refused(given, expected):
    said = refusal_of("train.optimiser.learning_rate", given)
    assert expected in said
    assert "1 problem\n" in said


def test_a_search_of_nothing_is_refused():
    assert "nothing to vary" in refusal(search__ranges={})


@pytest.mark.parametrize(
    ("value", "text"), [(None, "null"), (True, "true"), ([0, 1], "[0, 1]"), ("dice", "dice"), (0.123456, "0.1235")]
)
def test_values_are_written_as_in_params_yaml(value, text):
    assert study.listed({"train.mirror_axes": value}) == f"train.mirror_axes: {text}"
    assert f"found:    {text}\n" in refusal_of("train.epochs", [{"no": "value"}, value])


@pytest.mark.parametrize(
    ("key", "cure"),
    [
        ("train.optimizer.learning_rate", "did you mean 'train.optimiser.learning_rate'?"),
        ("learning_rate", "did you mean 'train.optimiser.learning_rate'?"),
        ("train.best.smoothing", "fix it for all trials"),
        ("train.full_validation.every", "fix it for all trials"),
        ("train.on_extend", "fix it for all trials"),
        ("splits.seed", "give the whole key"),
        ("plan.overrides.spacing_mm", "fix it for all trials"),
        ("plan.override.batch_size", "did you mean 'plan.overrides.batch_size'?"),
    ],
)
def test_a_key_that_cannot_be_varied_is_refused(key, cure):
    assert cure in refusal_of(key, [1, 2])


def test_all_that_is_wrong_is_said_at_once():
    said = refusal(
        search__ranges={"train.epoch": [1, 2], "train.accumulate": {"low": 0, "high": 4}}, search__measure="dice"
    )
    assert "3 problems" in said
    assert "did you mean 'train.epochs'?" in said
    assert "did you mean 'dice_ema'?" in said or "did you mean 'dice_" in said


def test_a_plan_that_is_taken_as_it_is_cannot_be_varied():
    given = {"plan.overrides.batch_size": {"low": 2, "high": 4}}
    plan = {"preset": "plain", "gpu_memory_gb": None, "normalisation": None, "file": "plan.json"}
    nothing = dict.fromkeys(("spacing_mm", "patch_size", "batch_size", "features_base"))
    assert "taken as it is" in refusal(search__ranges=given, plan={**plan, "overrides": nothing})


def test_losses_are_no_measure_where_the_loss_is_varied():
    said = refusal(search__measure="val_loss", search__ranges={"train.loss.region_weight": {"low": 0.5, "high": 2.0}})
    assert "losses that cannot be compared" in said
    ranges.check(params(search__measure="val_loss", search__ranges=RATE), LABELS)


def test_a_grid_needs_an_end():
    assert "a step" in refusal(search__ranges=RATE, search__sampler="grid")
    whole = {
        "train.accumulate": {"low": 1, "high": 4},
        "train.oversample_foreground": {"low": 0, "high": 1, "step": 0.1},
    }
    settings = params(search__ranges=whole, search__sampler="grid")
    ranges.check(settings, LABELS)
    found = {key: one.grid() for key, one in ranges.of(settings).items()}
    assert found["train.accumulate"] == [1, 2, 3, 4]
    assert found["train.oversample_foreground"] == pytest.approx([i / 10 for i in range(11)])


def test_a_configuration_that_is_not_prepared_is_refused():
    assert "not prepared" in refusal(search__configuration="2d")
    assert ranges.configuration(params()) == "3d_fullres"
    assert ranges.configuration(params(configurations=["2d", "3d_fullres"])) == "2d"


def test_other_values_are_put_into_the_settings():
    changed = ranges.applied(
        params(), {"train.accumulate": 4, "plan.overrides.batch_size": 3, "train.mirror_axes": [0]}
    )
    assert (changed.train.accumulate, changed.plan.overrides.batch_size, changed.train.mirror_axes) == (4, 3, [0])
    with pytest.raises(SegpipeError, match="cannot be used together") as error:
        ranges.applied(params(), {"train.loss.region_weight": 0.0, "train.loss.voxel_weight": 0.0})
    assert "nothing would be learnt" in str(error.value)


def test_the_study_is_the_same_when_the_best_values_are_put_into_params_yaml():
    before = ranges.of_study(params(search__ranges=RATE))
    assert ranges.of_study(params(search__ranges=RATE, train__optimiser__learning_rate=0.05)) == before
    assert ranges.of_study(params(search__ranges=RATE, search__trials=99, search__workers=9)) == before
    assert ranges.of_study(params(search__ranges=RATE, train__on_extend="continue", report__cases=9)) == before


@pytest.mark.parametrize(
    "change",
    [
        {"search__ranges": {"train.optimiser.learning_rate": {"low": 1e-3, "high": 0.2, "log": True}}},
        {"search__measure": "dice_mean"},
        {"search__sampler": "random"},
        {"search__seed": 1},
        {"search__folds": [1]},
        {"search__pruner__name": "none"},
        {"train__accumulate": 2},
        {"validate__checkpoint": "best"},
        {"configurations": ["2d"]},
    ],
)
def test_another_study_is_one_with_other_settings(change):
    assert ranges.of_study(params(**{"search__ranges": RATE, **change})) != ranges.of_study(params(search__ranges=RATE))


def test_a_varied_plan_leaves_the_present_one_out():
    given = {"plan.overrides.batch_size": {"low": 2, "high": 4}}
    before = ranges.of_study(params(search__ranges=given))
    assert "batch_size" not in before["plan"]["overrides"]
    present = params(search__ranges=given).plan.overrides.model_dump()
    assert ranges.of_study(params(search__ranges=given, plan__overrides={**present, "batch_size": 4})) == before
    assert ranges.of_study(params(search__ranges=given, plan__overrides={**present, "features_base": 8})) != before


@pytest.mark.parametrize(
    ("key", "given", "inside", "outside"),
    [
        ("train.optimiser.learning_rate", {"low": 0.01, "high": 0.1}, [0.01, 0.05, 0.1], [0.2, None]),
        ("train.oversample_foreground", {"low": 0.1, "high": 0.9, "step": 0.2}, [0.1, 0.3, 0.9], [0.2]),
        ("train.loss.region", ["dice", "tversky"], ["dice"], ["jaccard"]),
        ("train.augment", [True, False], [True], [None]),
    ],
)
def test_what_lies_in_a_range(key, given, inside, outside):
    one = ranges.of(params(search__ranges={key: given}))[key]
    assert [value for value in [*inside, *outside] if one.has(value)] == inside
