"""The page about a search: what it says is what the study has, whatever the values, and it needs nothing but itself."""

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import params

from segpipe.report import search_page
from segpipe.search.ranges import Range
from segpipe.search.study import Search

RANGES = {
    "train.optimiser.learning_rate": {"low": 1e-3, "high": 0.1, "log": True},
    "train.mirror_axes": [None, [0], [0, 1, 2]],
}
VALUES = (0.5, 0.25, None, 0.75, 0.6)  # of the trials; the third one fails, the fifth is pruned


def searched(folder: Path, values: Sequence[float | None] = VALUES, **changes: Any) -> Search:
    """A study whose trials have come to these values after three epochs, each a third of the way."""
    settings = params(search__ranges=RANGES, search__trials=len(values), **changes)
    search = Search(folder / "study", settings, 3)
    for number, value in enumerate(values):
        taken = search.take()
        assert taken is not None
        for epoch in (1, 2, 3):
            taken.trial.report(0.0 if value is None else value * epoch / 3, epoch)
        if value is None:
            search.fail(taken, "diverged at <step> 3\nand more")
        elif number == 4:
            search.prune(taken)
        else:
            search.finish(taken, value)
        taken.lock.close()
    return search


def page(search: Search, **changes: Any) -> str:
    return search_page.html(search, params(search__ranges=RANGES, **changes))


def rows(text: str, section: str) -> list[list[str]]:
    """The first table of a section as text."""
    body = re.findall(rf"<h2>{section}</h2>.*?<tbody>(.*?)</tbody>", text, re.S)[0]
    cells = (re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("</tr>")[:-1])
    return [[html.unescape(re.sub("<.*?>", "", cell)) for cell in row] for row in cells]


def points(text: str, title: str) -> list[list[tuple[float, float]]]:
    """The lines of a chart, in its own units."""
    chart = next(part for part in re.findall(r"<svg.*?</svg>", text, re.S) if f"<title>{title}</title>" in part)
    found = re.findall(r'points="(.*?)"', chart)
    return [[(float(x), float(y)) for x, y in (one.split(",") for one in line.split())] for line in found]


def test_every_trial_is_listed_with_what_it_was_and_what_came_of_it(tmp_path: Path) -> None:
    search = searched(tmp_path)
    text = page(search)
    listed = rows(text, "Trials")
    assert [row[:4] for row in listed] == [
        ["0", "finished", "0.5000", "3"],
        ["1", "finished", "0.2500", "3"],
        ["2", "failed", "–", "3"],  # noqa: RUF001
        ["3", "finished", "0.7500", "3"],
        ["4", "pruned", "0.6000", "3"],
    ]
    assert [row[-1] for row in listed] == ["", "", "diverged at <step> 3", "best", ""]
    rates = [search.values(one)["train.optimiser.learning_rate"] for one in search.trials]
    assert [float(row[4]) for row in listed] == pytest.approx(rates, rel=1e-3)
    assert "trial 3</p>" in text
    assert "3 finished, 1 pruned, 1 failed" in text
    assert "<step>" not in text


def test_the_best_settings_stand_beside_those_of_the_start(tmp_path: Path) -> None:
    search = searched(tmp_path)
    text = page(search)
    best = search.values(search.trials[3])
    (rate, axes, measure) = rows(text, "Best settings")
    assert "<th>at the start, trial 0</th>" in text
    assert rate[1:] == [f"{best['train.optimiser.learning_rate']:.4g}", "0.01"]
    assert axes[2] == "null"
    assert measure == ["dice_ema", "0.7500", "0.5000"]
    first_is_best = page(searched(tmp_path / "other", (0.9, 0.1)))
    assert "at the start" not in first_is_best
    assert "4 finished trials of different values" in first_is_best  # too few for shares


@pytest.mark.parametrize(("measure", "rises"), [("dice_ema", True), ("val_loss", False)])
def test_the_best_so_far_goes_in_steps_to_where_it_is_better(tmp_path: Path, measure: str, rises: bool) -> None:
    search = searched(tmp_path, search__measure=measure)
    (line,) = points(page(search, search__measure=measure), f"{measure} of each trial")
    first, second, third = (y for _, y in line[1::2])
    assert [line[i][0] for i in (0, 2, 4)] == [line[i][0] for i in (1, 3, 5)]  # straight up or down at each trial
    if rises:  # what is higher has a smaller y
        assert first == second > third
    else:
        assert first < second == third


def test_curves_end_where_the_trial_ended_and_every_setting_has_its_chart(tmp_path: Path) -> None:
    text = page(searched(tmp_path))
    assert [len(line) for line in points(text, "dice_ema over the epochs")] == [3] * 5
    for key in RANGES:
        chart = next(part for part in re.findall(r"<svg.*?</svg>", text, re.S) if f"<title>{key}</title>" in part)
        assert chart.count("<circle") == 4  # not of the one that failed
        assert "<title>trial 4, pruned: 0.6000</title>" in chart
        assert re.findall(r"trial (\d)", chart)[-1] == "3"  # the best one lies above the others
    assert text.count("<svg") == 2 + len(RANGES)


def test_shares_follow_from_four_finished_trials(tmp_path: Path) -> None:
    shares = rows(page(searched(tmp_path, (0.1, 0.5, 0.3, 0.9))), "What each setting did")
    assert {name for name, _ in shares} == set(RANGES)
    assert sum(float(share) for _, share in shares) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (Range(low=1e-4, high=0.1, log=True), ["0.0001", "0.001", "0.01", "0.1"]),
        (Range(low=3e-3, high=0.02, log=True), ["0.003", "0.01", "0.02"]),
        (Range(low=1, high=3, whole=True), ["1", "2", "3"]),
        (Range(low=0.9, high=0.99), ["0.9", "0.95", "0.99"]),
        (Range(choices=["a" * 30, None]), ["", "a" * 19 + "…", "null", ""]),
    ],
)
def test_what_is_written_below_a_chart(one: Range, said: list[str]) -> None:
    places = search_page._below(one)
    assert [text for _, text in places] == said
    assert places == sorted(places, key=lambda place: place[0])


def test_it_is_one_file_and_the_same_study_gives_the_same_bytes(tmp_path: Path) -> None:
    search = searched(tmp_path)
    settings = params(search__ranges=RANGES)
    for name in ("a", "b"):
        search_page.write(search, settings, tmp_path / name)
    text = (tmp_path / "a/report.html").read_bytes()
    assert text == (tmp_path / "b/report.html").read_bytes()
    assert not re.findall(rb"(?:src|href)=|https?://|@import|url\(", text)
