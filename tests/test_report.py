"""The page about a run: what it says is what the files say, whatever the names, and it needs nothing but itself."""

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import reported
import yaml
from volumes import REPO

from segpipe import params as params_yaml
from segpipe.report import choices, facts, names, nnunet, page, reliability
from segpipe.report.results import Results

VOID = ("meta", "img", "br", "input")


class Page(HTMLParser):
    """The tables of a page as text, and its addresses; every tag is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.addresses: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def table(self, *head: str) -> list[list[str]]:
        """The first table whose head begins so."""
        return next(table for table in self.tables if table[0][: len(head)] == list(head))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return reported.run(tmp_path_factory.mktemp("run"), configurations=2)


@pytest.fixture(scope="module")
def text(run: Results) -> str:
    return page.html(run)


@pytest.fixture(scope="module")
def parsed(text: str) -> Page:
    return Page(text)


def shown(value: float | None, metric: str = "") -> str:
    return "–" if value is None else names.number(value, metric)  # noqa: RUF001


def test_every_number_of_the_cross_validation_is_that_of_its_summary(run: Results, parsed: Page) -> None:
    table = parsed.table("class")
    metrics = [
        name for name in run.crossval["foreground_mean"] if name not in names.COUNTS and not name.startswith("volume_")
    ]
    assert table[0][1:] == [names.of(name) for name in metrics]
    for row, numbers, intervals in [
        (table[1], run.crossval["mean"]["1"], run.crossval["confidence"]["mean"]["1"]),
        (table[2], run.crossval["mean"]["2"], run.crossval["confidence"]["mean"]["2"]),
        (table[3], run.crossval["foreground_mean"], run.crossval["confidence"]["foreground_mean"]),
    ]:
        expected = [
            shown(numbers[name], name)
            + (
                f"{shown(between['low'], name)} to {shown(between['high'], name)}"
                if (between := intervals[name])
                else ""
            )
            for name in metrics
        ]
        assert row[1:] == expected
    assert "HD95 [mm]" in table[0]
    assert "95 % confidence interval (bootstrap over 6 cases)" in "".join(page.tables.classes(run))


def test_the_counts_are_there_as_well(run: Results, parsed: Page) -> None:
    counts = next(table for table in parsed.tables if "TP" in table[0])
    assert counts[1][counts[0].index("TP")] == shown(run.crossval["mean"]["1"]["TP"], "TP")


def test_all_cases_are_listed_the_worst_first(run: Results, parsed: Page) -> None:
    head, *rows = parsed.table("case", "fold")
    assert [row[0] for row in rows] == ["f", "e", "d", "c", "b", "a&b"]
    assert {row[1] for row in rows} == {"0", "1"}
    by_case = {Path(row["prediction_file"]).name.removesuffix(".nii.gz"): row["metrics"] for row in run_rows(run)}
    for case, _, mean, liver, kidney, *_ in rows:
        one, two = by_case[case]["1"]["Dice"], by_case[case]["2"]["Dice"]
        known = [value for value in (one, two) if value is not None]
        assert [mean, liver, kidney] == [shown(sum(known) / len(known)), shown(one), shown(two)]
    f = next(row for row in rows if row[0] == "f")
    assert f[head.index("Dice kidney")] == shown(None), "neither predicted nor there"


def run_rows(run: Results) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = run.crossval["metric_per_case"]
    return rows


def test_a_case_without_any_number_is_the_last_and_in_no_picture(run: Results) -> None:
    rows = [
        {**row, "metrics": {"1": {"Dice": None if "f.nii" in row["prediction_file"] else 0.5}}} for row in run_rows(run)
    ]
    changed = dataclasses.replace(run, crossval={**run.crossval, "metric_per_case": rows})
    assert [case.name for case in changed.validated] == ["a&b", "b", "c", "d", "e", "f"]
    assert [case.name for _, case in page.pictures.chosen(changed.validated, 6)] == ["a&b", "b", "c", "d", "e"]


def test_configurations_stand_beside_their_ensemble(run: Results, parsed: Page) -> None:
    table = parsed.table("", "Dice <b>liver</b>")
    assert [row[0] for row in table[1:]] == ["3d_fullres", "2d", "3d_fullres + 2d"]
    assert table[1][3] == shown(run.crossval["foreground_mean"]["Dice"]), "here all are equal"
    folds = parsed.table("mean foreground Dice")
    assert folds[0][1:] == ["fold 0", "fold 1"]
    assert folds[1][1:] == [shown(one["foreground_mean"]["Dice"]) for one in run.crossval["folds"].values()]


def test_the_page_needs_nothing_but_itself(run: Results, text: str, parsed: Page) -> None:
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in parsed.addresses)
    anchors = re.findall(r' id="([^"]*)"', text)
    assert {address[1:] for address in parsed.addresses if address.startswith("#")} <= set(anchors)
    assert not re.search(r"url\(|@import|<link|<iframe|https?:", text)
    assert str(run.cases.root) not in text
    assert str(run.cases.root.parents[1]) not in text


def test_names_are_text_not_html(text: str) -> None:
    assert "<b>liver</b>" not in text
    assert "&lt;b&gt;liver&lt;/b&gt;" in text
    assert "a&amp;b" in text
    assert "Dataset007_A&amp;B: report" in text
    assert not re.search(r"a&b\b", text, re.I)


def test_the_same_results_give_the_same_bytes(tmp_path: Path, run: Results, text: str) -> None:
    again = reported.run(tmp_path, configurations=2)
    page.write(again, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == text


def test_what_does_not_exist_is_left_out(tmp_path: Path, text: str) -> None:
    assert "<h2>Predictions</h2>" in text
    without = page.html(reported.run(tmp_path, test=[]))
    Page(without)
    assert "<h2>Predictions</h2>" not in without
    assert "3d_fullres + 2d" in text
    assert "3d_fullres + " not in without
    for part in ("Calibration", "Choice", "Postprocessing"):
        assert f"<h2>{part}</h2>" not in without


BINS = [{"lower": 0.5, "upper": 1.0, "voxels": 5, "confidence": 0.8, "accuracy": 0.6}]
SCORES = {"voxels": 5, "ece": 0.2, "classwise_ece": {"1": 0.1}, "nll": 0.5, "brier": 0.25, "reliability": BINS}
CALIBRATION = {
    "calibrations": [
        {
            "configurations": ["2d", "3d_fullres"],
            "temperature": 1.25,
            "before": {"near": SCORES, "all": SCORES},
            "after": {"near": {**SCORES, "ece": 0.0625}, "all": SCORES},
            "held_out": None,
        }
    ]
}


def test_the_calibration_is_shown_where_there_is_one(run: Results) -> None:
    text = page.html(dataclasses.replace(run, files={"calibration": CALIBRATION}))
    table = next(table for table in Page(text).tables if "temperature" in table[0])
    assert table[1][:5] == ["2d + 3d_fullres", "1.25", "0.2000", "0.0625", "–"]  # noqa: RUF001
    assert len("".join(reliability.section(CALIBRATION, ["3d_fullres", "2d"])).split('class="chart"')) == 3
    assert 'class="chart"' not in "".join(reliability.section(CALIBRATION, ["2d"])), "of what counts alone"


CHOICE = {
    "chosen": ["2d"],
    "measure": "Dice",
    "margin": 0.02,
    "resampled": "patients",
    "n_resampled": 7,
    "candidates": [
        {
            "members": members,
            "mean": mean,
            "per_class": {"1": mean, "2": None},
            "to_best": {"difference": mean - 0.75, "low": None, "high": None},
        }
        for members, mean in ((["2d"], 0.5), (["2d", "3d_fullres"], 0.75))
    ],
}


def test_the_choice_is_shown_the_best_first(run: Results) -> None:
    text = "".join(choices.choice(CHOICE, run.cases.labels))
    ((head, *rows),) = Page(text).tables
    assert [row[:4] for row in rows] == [
        ["2d + 3d_fullres", "0.7500", "0.7500", "–"],  # noqa: RUF001
        ["2d", "0.5000", "0.5000", "–"],  # noqa: RUF001
    ]
    assert [row[-1] for row in rows] == ["", "chosen"]
    assert head[1] == "Dice, mean"
    assert "when patients are drawn again (bootstrap; 7 of them)" in text


POSTPROCESSING = {
    "rules": [{"of": "kidney", "largest_component": True, "minimum_ml": None, "minimum_voxels": None}],
    "members": ["3d_fullres"],
    "tried": [
        {
            "rule": {"of": name, "largest_component": True, "minimum_ml": minimum, "minimum_voxels": None},
            "kept": name == "kidney",
            "before": {"foreground_mean": 0.5, "mean": {"1": 0.5, "2": None}},
            "after": {"foreground_mean": 0.625, "mean": {"1": 0.625, "2": None}},
        }
        for name, minimum in (("kidney", None), ("<b>liver</b>", 0.5))
    ],
}


def test_postprocessing_is_shown_with_all_that_was_tried(run: Results) -> None:
    text = page.html(dataclasses.replace(run, files={"postprocessing": POSTPROCESSING}))
    assert "<li>kidney: the largest component</li>" in text
    _, *rows = Page(text).table("rule")
    assert rows[0] == ["kidney: the largest component", "0.5000", "0.6250", "0.1250", "–", "kept"]  # noqa: RUF001
    assert rows[1][0] == "<b>liver</b>: the largest component, components of 0.5 ml or more"
    nothing = {**POSTPROCESSING, "rules": []}
    assert "Nothing is removed" in "".join(choices.postprocessing(nothing, run.cases.labels))


WORDS = {"never": None, "none": None, "all 1": {"encoder": 1.0, "decoder": 1.0, "heads": 1.0}}
PROSE = {"predict.postprocess"}  # what nnU-Net has no setting for


def test_nnunets_values_are_those_of_params_yaml_unless_a_comment_says_another() -> None:
    text = (REPO / "params.yaml").read_text()
    expected, keys, n_said = dict(facts._flat(yaml.safe_load(text))), [""], 0
    for line in text.splitlines():
        if found := re.match(r"( *)(\w+):(?:.*nnU-Net: ([^;(]+?)\s*(?:[;(].*)?$)?", line):
            keys = [*keys[: len(found[1]) // 2 + 1], found[2]]
            if found[3] and ".".join(keys[1:]) not in PROSE:
                expected[".".join(keys[1:])] = WORDS.get(found[3], yaml.safe_load(found[3]))
                n_said += 1
                assert ".".join(keys[1:]) in nnunet.SETTINGS
    assert n_said > 25
    assert {key: expected[key] for key in nnunet.SETTINGS} == nnunet.SETTINGS


def test_settings_that_differ_are_named_and_all_are_there(run: Results, parsed: Page) -> None:
    different = {row[0]: row[1:] for row in parsed.table("setting")[1:]}
    assert different["train.epochs"] == ["3", "1000"]
    assert "validate.step_size" in different
    assert "train.best.smoothing" not in different
    (every,) = (dict(table) for table in parsed.tables if table[0][0] == "dataset" and len(table) > 20)
    flat = dict(facts._flat(params_yaml.of_results(run.params)))
    assert flat.keys() == every.keys()
    assert not any(key.startswith(("runtime", "download")) for key in every)
    assert every["dataset"] == "Dataset007_A&B", "where it lies belongs to the machine"
    assert every["train.seed"] == "0"


def test_where_the_data_are_from_is_said_as_dataset_json_says_it(parsed: Page) -> None:
    data = dict(parsed.table("name")) if len(parsed.table("name")[0]) == 2 else {}
    assert data["name"] == "Dataset007_A&B"
    assert data["reference"] == "<a> & b"
    assert data["licence"] == "CC-BY 4.0"
    assert data["cases"] == "6 with a label, 1 to predict"


def test_the_plan_and_the_trainings_are_there(parsed: Page) -> None:
    plan = parsed.table("", "3d_fullres", "2d")
    assert ["patch [voxels]", "8 x 8 x 8", "8 x 8 x 8"] in plan
    assert ["parameters", "1,234", "1,234"] in plan
    trainings = parsed.table("configuration")
    assert trainings[1][:3] == ["3d_fullres", "0", "digest0"]
