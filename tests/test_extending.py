"""docs/extending.md holds: each of its lines of params.yaml trains, and what it names is what happens."""

import csv
import logging
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import BaseModel
from tiny import params, planned, wave
from torch.nn.functional import cross_entropy, softmax
from volumes import REPO

from segpipe import plugins
from segpipe.data import splits
from segpipe.data.labels import Labels
from segpipe.params import Params, Train
from segpipe.training import checkpoint, job
from segpipe.training.identity import identify
from segpipe.training.network import build

pytest_plugins = ["phantom_fixtures"]

DOC = (REPO / "docs/extending.md").read_text()
EXAMPLES = REPO / "docs/examples"
HOOKS = ["loss", "network", "optimiser", "schedule", "callback"]


@pytest.fixture(autouse=True)
def working_directory(monkeypatch):
    monkeypatch.chdir(REPO)


def flat(block, prefix="train") -> dict[str, object]:
    """{"loss": {"custom": "a:b"}} as tiny.params takes it."""
    found = {}
    for key, value in block.items():
        found |= flat(value, f"{prefix}__{key}") if isinstance(value, dict) else {f"{prefix}__{key}": value}
    return found


# the settings that the page shows, by hook
SHOWN = {
    hook: flat(yaml.safe_load(block))
    for hook, block in zip(HOOKS, re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL), strict=True)
}


def path_of(hook: str) -> str:
    (value,) = SHOWN[hook].values()
    return value[0] if isinstance(value, list) else value


def example(hook: str) -> Callable:
    return plugins.load(path_of(hook), "here")


@pytest.fixture
def train(prepared, tmp_path) -> Callable[..., Path]:
    """Train fold 0 with a hook's example and other settings of `train`; returns the folder of the finished files."""

    def run(hook: str | None, folder: str = "fold_0", **changes) -> Path:
        out = tmp_path / folder
        job.train(prepared.store, prepared.splits, "0", out, settings(hook, **changes))
        return out

    return run


def settings(hook: str | None, **changes) -> Params:
    small = {"epochs": 2, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1}
    return params(
        **(SHOWN[hook] if hook else {}), **{f"train__{key}": value for key, value in {**small, **changes}.items()}
    )


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def weights(out: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(out / "checkpoint_final.pth")["network"]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# the page


@pytest.mark.parametrize("hook", HOOKS)
def test_the_page_shows_the_example_as_it_is(hook):
    block = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)[HOOKS.index(hook)]
    assert block in (EXAMPLES / f"{hook}.py").read_text()


@pytest.mark.parametrize("hook", HOOKS)
def test_the_line_shown_names_the_example(hook):
    assert path_of(hook).startswith(f"docs.examples.{hook}:")
    assert callable(example(hook))


def import_paths(model: type[BaseModel], prefix: str) -> set[str]:
    """The settings of a block that take an import path."""
    found = set()
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= import_paths(field.annotation, f"{prefix}.{key}")
        elif ":[A-Za-z_]" in repr((field.annotation, field.metadata)):
            found.add(f"{prefix}.{key}")
    return found


def test_every_hook_of_the_settings_and_every_example_is_on_the_page():
    assert set(re.findall(r"^\| `(train[a-z_.]+)`", DOC, re.MULTILINE)) == import_paths(Train, "train")
    assert {file.stem for file in EXAMPLES.glob("*.py")} == {*HOOKS, "predict_onnx"}  # which docs/interop.md shows


def test_links_of_the_page_lead_to_files():
    links = re.findall(r"\]\((.*?)\)", DOC)
    assert len(links) == len(HOOKS)
    assert all((REPO / "docs" / link).is_file() for link in links)


# loss


def test_the_loss_trains(train):
    out = train("loss")
    plain = train(None, "plain")
    q = example("loss").__globals__["Q"]
    for row in rows(out):
        assert 0 < float(row["train_loss"]) < 1 / q
        assert 0 < float(row["val_loss"]) < 1 / q
    assert not equal(weights(out), weights(plain))


def test_the_first_loss_is_the_examples(train, monkeypatch):
    """What the loop reports is the weighted mean of what the example returned for each resolution."""
    given, function = [], example("loss")

    def noting(logits, label):
        loss = function(logits, label)
        given.append((logits.shape, label.shape, logits.dtype, label.dtype, loss.detach()))
        return loss

    monkeypatch.setattr("docs.examples.loss.generalised_cross_entropy", noting)
    changes = {"loss__deep_supervision": [3.0, 1.0], "val_iterations_per_epoch": 1}
    row = rows(train("loss", epochs=1, iterations_per_epoch=1, **changes))[0]
    assert len(given) == 4  # two resolutions of a training batch and of a validation batch
    (finest, label, *types, first), (coarser, smaller, *_, second) = given[:2]
    assert (finest[0], *finest[2:]) == label == (2, 16, 16, 16)
    assert (coarser[0], *coarser[2:]) == smaller == (2, 8, 8, 8)
    assert types == [torch.float32, torch.int64]
    assert float(row["train_loss"]) == pytest.approx(float(0.75 * first + 0.25 * second), rel=1e-5)


def test_the_loss_lies_between_cross_entropy_and_one_minus_p(monkeypatch):
    loss, (logits, label) = example("loss"), (3 * wave(2, 3, 4, 5, 6), (wave(2, 4, 5, 6) * 1.4).abs().round().long())
    monkeypatch.setitem(loss.__globals__, "Q", 1e-4)
    assert float(loss(logits, label)) == pytest.approx(float(cross_entropy(logits, label)), rel=1e-3)
    monkeypatch.setitem(loss.__globals__, "Q", 1.0)
    labelled = softmax(logits, 1).gather(1, label[:, None])
    assert float(loss(logits, label)) == pytest.approx(float(1 - labelled.mean()), rel=1e-5)


# network


def born(content, plan, settings):
    """The first weights of the network of a checkpoint."""
    n_heads = len(Labels.from_json(content["labels"]).heads)
    return build(len(content["channel_names"]), n_heads, plan, settings).state_dict()


def test_the_network_trains(train):
    out = train("network", loss__deep_supervision=[1.0, 0.5])
    trained = weights(out)
    assert "encoder.stages.0.shortcut.weight" in trained
    assert "decoder.stages.0.shortcut.weight" in trained
    content = checkpoint.load(out / "checkpoint_final.pth")
    plan = planned(**content["plan"]["configurations"]["3d_fullres"])
    start = born(content, plan, settings("network").train)
    assert all(not torch.equal(trained[name], start[name]) for name in trained if "shortcut.weight" in name)


@pytest.mark.parametrize("patch", [[8, 8, 8], [16, 8]])
def test_the_network_is_the_plans_with_shortcuts(patch):
    plan = planned(patch)
    network = example("network")(2, 3, plan).eval()
    image = wave(1, 2, *patch)
    finest, coarser = network.supervised(image, 2)
    assert finest.shape == (1, 3, *patch)
    assert coarser.shape == (1, 3, *(edge // 2 for edge in patch))
    assert torch.equal(finest, network(image))
    stage = network.encoder.stages[1]
    x = wave(1, 4, *patch)
    assert torch.equal(stage(x), stage.stage(x) + stage.shortcut(x))


# optimiser


def test_the_optimiser_trains_by_steps_of_equal_size(train):
    """After one step without decay each weight has moved by the rate, or not at all where it has no gradient."""
    rate = 2.0**-10
    changes = {"optimiser__learning_rate": rate, "optimiser__weight_decay": 0.0, "schedule__name": "constant"}
    out = train("optimiser", epochs=1, iterations_per_epoch=1, **changes)
    content = checkpoint.load(out / "checkpoint_final.pth")
    plan = planned(**content["plan"]["configurations"]["3d_fullres"])
    start = born(content, plan, settings(None).train)
    moved = torch.cat([(content["network"][name] - tensor).flatten() for name, tensor in start.items()])
    by_rate = (moved.abs() - rate).abs() < 1e-6
    assert (by_rate | (moved == 0)).all()
    assert by_rate.float().mean() > 0.5


def test_a_training_with_the_optimiser_goes_on_as_if_it_had_not_stopped(train):
    """Its running means are in the checkpoint."""
    constant = {"optimiser__learning_rate": 1e-3, "schedule__name": "constant", "on_extend": "continue"}
    whole = train("optimiser", "whole", epochs=2, **constant)
    train("optimiser", "extended", epochs=1, **constant)
    extended = train("optimiser", "extended", epochs=2, **constant)
    assert equal(weights(extended), weights(whole))


def test_the_optimiser_follows_the_algorithm():
    """Chen et al. 2023, algorithm 2, for one weight over two steps."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    block = params(train__optimiser__betas=[0.9, 0.99]).train.optimiser
    group = {"params": [weight], "lr": 0.1, "weight_decay": 0.5, "rate_factor": 1.0}
    lion = example("optimiser")([group], block)
    assert lion.param_groups[0]["rate_factor"] == 1.0
    expected, mean = weight.detach().clone(), torch.zeros(2)
    for gradient in (torch.tensor([3.0, -1.0]), torch.tensor([-0.2, -0.5])):
        weight.grad = gradient.clone()
        lion.step()
        expected = expected - 0.1 * (torch.sign(0.9 * mean + 0.1 * gradient) + 0.5 * expected)
        mean = 0.99 * mean + 0.01 * gradient
        assert torch.allclose(weight.detach(), expected)
    assert torch.sign(0.9 * 0.01 * torch.tensor(3.0) + 0.1 * -0.2) > 0  # the mean outweighs the second gradient
    assert torch.allclose(lion.state[weight]["mean"], mean)


# schedule


def test_the_schedule_sets_the_rate(train):
    out = train("schedule", epochs=10, iterations_per_epoch=1, optimiser__learning_rate=0.02)
    found = [float(row["learning_rate"]) for row in rows(out)]
    assert found[:9] == [0.02] * 9
    assert found[9] == pytest.approx(0.02 * (1 - 0.5**0.5), rel=1e-5)


def test_the_schedule_falls_to_nothing():
    factor, block = example("schedule"), settings(None).train.schedule
    values = [factor(p / 1000, block) for p in range(1000)]
    assert values[:800] == [1.0] * 800
    assert all(one > other > 0 for one, other in pairwise(values[800:]))
    assert values[-1] < 0.01


# callback


def test_the_callback_is_called_after_each_epoch_and_changes_nothing(train, caplog):
    with caplog.at_level(logging.INFO):
        out = train("callback")
    (log,) = (out / "state").glob("*/train.log")
    found = re.findall(r"epoch (\d+): weights of encoder ([\d.]+), decoder ([\d.]+)", log.read_text())
    assert [number for number, *_ in found] == ["1", "2"]
    trained = weights(out)
    for part, norm in zip(("encoder.", "decoder."), found[-1][1:], strict=True):
        values = torch.cat([tensor.flatten() for name, tensor in trained.items() if name.startswith(part)])
        assert float(norm) == pytest.approx(float(values.norm()), abs=1e-3)
    assert found[0][1:] != found[1][1:]
    assert equal(trained, weights(train(None, "plain")))


# identity


@pytest.mark.parametrize("hook", HOOKS)
def test_an_edit_of_the_named_module_is_another_training(prepared, tmp_path, monkeypatch, hook):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    fold = splits.read(prepared.splits, "0")
    source, name = (EXAMPLES / f"{hook}.py").read_text(), path_of(hook).partition(":")[2]
    file = tmp_path / f"own_{hook}.py"
    ((key, shown),) = SHOWN[hook].items()
    path = f"own_{hook}:{name}"
    chosen = params(**{key: [path] if isinstance(shown, list) else path})
    found = []
    for text in (source, source.replace('"""', '"""Of ours. ', 1), f"{source}\nVERSION = 2\n"):
        file.write_text(text)
        found.append(identify(prepared.store, fold, chosen, tmp_path).digest)
    assert found[0] == found[1] != found[2]
