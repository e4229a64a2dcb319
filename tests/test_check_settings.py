"""The section `train` against the dataset and the files that it names, before anything runs."""

import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import yaml
from tiny import labels_of, params
from volumes import REPO

from segpipe.errors import SegpipeError
from segpipe.training import selection
from segpipe.training.check import check

LABELS = labels_of({"background": 0, "liver": 1, "tumour": 2})
CLASSES = ["liver", "tumour"]
EVERYTHING = {"train__ema__decay": 0.9, "train__full_validation__every": 2}


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(**changes) -> str:
    with pytest.raises(SegpipeError) as error:
        check(params(**changes), LABELS)
    return str(error.value)


def only(text: str) -> dict[str, str]:
    """The lines of the one problem in a message, by their names; `what` is the first."""
    title, what, *lines = (line for line in text.splitlines() if line)
    assert title == "params.yaml does not fit: 1 problem"
    return {"what": what} | {
        key.strip(): rest.strip() for key, rest in (line.split(":", 1) for line in lines if line.startswith("  "))
    }


def test_the_projects_own_settings_fit():
    check(params(), LABELS)


def test_all_problems_are_told_at_once():
    text = refused(
        train__best__fitness={"dice_livr": 1.0, "val_loss": 1.0},
        train__early_stopping__monitor="dice_emma",
        train__loss__class_weights={"livre": 1.0, "liver": 0.0, "tumour": 0.0},
        train__schedule__warmup_steps=9,
        train__pretrained_weights="absent.pth",
        train__network="absent_module:Net",
        train__callbacks=["absent_module:one", "other_absent:two"],
        train__precision="fp16",
    )
    whats = [part.splitlines()[0] for part in text.split("\n\n")]
    assert whats == [
        "params.yaml does not fit: 11 problems",
        "no such column in metrics.csv",
        "no such column in metrics.csv",
        "the highest loss would be the best",
        "no such class",
        "no class is left to learn",
        "the warm-up is as long as the training",
        "no pretrained weights",
        "no such module",
        "no such module",
        "no such module",
        "fp16 needs CUDA",
    ]
    for part in text.split("\n\n")[1:]:
        assert [line.split(":")[0].strip() for line in part.splitlines()[1:]] == ["where", "found", "expected", "cure"]
        assert "params.yaml: train." in part


# columns


def test_every_measure_may_be_monitored_and_all_but_the_fitness_summed():
    known = set(selection.columns(params(**EVERYTHING).train, CLASSES)) - {"epoch", "step", "learning_rate"}
    assert {"train_loss", "averaged_dice_tumour", "case_dice_mean", "dice_ema", "fitness_ema"} < known
    for name in known:
        check(params(**EVERYTHING, train__early_stopping__monitor=name), LABELS)
        weight = -1.0 if name in selection.LOSSES else 1.0
        fitness = {"train__best__fitness": {name: weight}}
        if name == "fitness_ema":
            assert only(refused(**EVERYTHING, **fitness))["where"] == "params.yaml: train.best.fitness"
        else:
            check(params(**EVERYTHING, **fitness), LABELS)


@pytest.mark.parametrize("name", ["epoch", "step", "learning_rate"])
def test_what_measures_no_epoch_is_neither_monitored_nor_summed(name):
    for key, value in (("early_stopping__monitor", name), ("best__fitness", {name: 1.0})):
        found = only(refused(**{f"train__{key}": value}))
        assert (found["what"], found["found"]) == ("no such column in metrics.csv", name)
        assert f" {name}," not in f" {found['expected']},"


def test_columns_that_do_not_exist_are_told_with_the_nearest():
    fitness = {"dice_livr": 1.0, "val_loss": -1.0, "vall_loss": -1.0}
    text = refused(train__best__fitness=fitness, train__early_stopping__monitor="dice_emma")
    assert "params.yaml does not fit: 3 problems" in text
    assert text.count("where:    params.yaml: train.best.fitness\n") == 2
    assert text.count("where:    params.yaml: train.early_stopping.monitor\n") == 1
    for name in ("dice_liver", "val_loss", "dice_ema"):
        assert f"did you mean {name!r}?" in text


def test_the_background_has_no_column():
    assert "did you mean" in only(refused(train__best__fitness={"dice_background": 1.0}))["cure"]


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("averaged_dice_mean", "train.ema.decay"),
        ("averaged_val_loss", "train.ema.decay"),
        ("case_dice_mean", "train.full_validation.every"),
        ("case_dice_liver", "train.full_validation.every"),
    ],
)
def test_a_column_of_what_is_switched_off_is_told_with_the_setting_that_makes_it(name, setting):
    for key, value in (("early_stopping__monitor", name), ("best__fitness", {name: -1.0})):
        cure = only(refused(**{f"train__{key}": value}))["cure"]
        assert cure.startswith(f"set {setting}: ")
        assert cure.endswith(", which makes such columns")
    named, value = cure.removeprefix("set ").split(",")[0].split(": ")  # and it is one that cures
    cured = {named.replace(".", "__"): float(value) if "." in value else int(value), "train__epochs": 10}
    check(params(**cured, train__best__fitness={name: -1.0}), LABELS)


def test_a_misspelt_column_of_what_is_switched_on_is_told_with_the_nearest():
    cure = only(refused(**EVERYTHING, train__best__fitness={"case_dice_livr": 1.0}))["cure"]
    assert cure == "did you mean 'case_dice_liver'?"


@pytest.mark.parametrize("name", selection.LOSSES)
def test_a_loss_that_would_be_the_better_the_higher_is_refused(name):
    found = only(refused(**EVERYTHING, train__best__fitness={name: 0.25, "dice_mean": 1.0}))
    assert found["what"] == "the highest loss would be the best"
    assert found["where"] == f"params.yaml: train.best.fitness.{name}"
    assert (found["found"], found["cure"]) == ("0.25", "write -0.25")
    for weight in (0.0, -0.25):
        check(params(**EVERYTHING, train__best__fitness={name: weight, "dice_mean": 1.0}), LABELS)


def test_a_class_that_is_called_like_a_loss_is_a_dice():
    check(params(train__best__fitness={"dice_loss": 1.0}), labels_of({"background": 0, "loss": 1}))


# classes


def test_weights_of_classes_that_do_not_exist():
    found = only(refused(train__loss__class_weights={"tumor": 2.0}))
    assert (found["what"], found["found"], found["cure"]) == ("no such class", "'tumor'", "did you mean 'tumour'?")
    assert found["where"] == "params.yaml: train.loss.class_weights"
    assert found["expected"] == "one of background, liver, tumour"
    assert (
        only(refused(train__loss__class_weights={"xyz": 2.0}))["cure"] == "remove it, or name a class of dataset.json"
    )


def test_weights_that_leave_nothing_to_learn():
    found = only(refused(train__loss__class_weights={"liver": 0.0, "tumour": 0.0}))
    assert found["what"] == "no class is left to learn"
    check(params(train__loss__class_weights={"liver": 0.0}), LABELS)
    check(params(train__loss__class_weights={"background": 0.0}), LABELS)


# lengths


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"schedule__warmup_steps": 9}, "schedule.warmup_steps"),
        ({"full_validation__every": 4}, "full_validation.every"),
        ({"full_validation__every": 3, "epochs": None, "max_steps": 6}, "full_validation.every"),
    ],
)
def test_what_the_training_is_too_short_for(changes, key):
    found = only(refused(**{f"train__{name}": value for name, value in changes.items()}))
    assert found["where"] == f"params.yaml: train.{key}"


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule__warmup_steps": 8},
        {"full_validation__every": 3},
        {"full_validation__every": 3, "epochs": None, "max_steps": 7},  # the last epoch is short
        {"schedule__warmup_steps": 9, "iterations_per_epoch": "pass"},  # known when the cases are
    ],
)
def test_what_the_training_is_long_enough_for(changes):
    check(params(**{f"train__{name}": value for name, value in changes.items()}), LABELS)


# files


def test_absent_weights_are_told_with_their_path(working_directory):
    found = only(refused(train__pretrained_weights="models/absent.pth"))
    assert (found["what"], found["found"]) == ("no pretrained weights", "models/absent.pth: no such file")
    assert "working directory" in found["cure"]
    (working_directory / "models/absent.pth").mkdir(parents=True)
    assert "no such file" in refused(train__pretrained_weights="models/absent.pth")  # a folder is no checkpoint


@pytest.mark.parametrize("absolute", [False, True])
def test_weights_that_are_there_are_taken(working_directory, absolute):
    (working_directory / "here.pth").touch()
    check(params(train__pretrained_weights=str(working_directory / "here.pth") if absolute else "here.pth"), LABELS)


@pytest.mark.parametrize("name", ["final", "best"])
@pytest.mark.parametrize("start", ["", "./"])
@pytest.mark.parametrize("exists", [True, False])
def test_published_checkpoints_are_no_pretrained_weights(working_directory, name, start, exists):
    """The rule that writes it would have it as an input."""
    path = f"results/3d_fullres/fold_0/checkpoint_{name}.pth"
    if exists:
        (working_directory / path).parent.mkdir(parents=True)
        (working_directory / path).touch()
    found = only(refused(train__pretrained_weights=start + path))
    assert found["what"] == "the pretrained weights are what this training replaces"
    assert "state/<digest>/final.pth" in found["cure"]


@pytest.mark.parametrize("path", ["results/3d_fullres/fold_0/state/abc/final.pth", "copies/checkpoint_final.pth"])
def test_what_no_rule_writes_is_taken(working_directory, path):
    (working_directory / path).parent.mkdir(parents=True)
    (working_directory / path).touch()
    check(params(train__pretrained_weights=path), LABELS)


def test_published_checkpoints_of_another_project_are_taken(working_directory):
    path = working_directory / "other/results/3d_fullres/fold_0/checkpoint_final.pth"
    path.parent.mkdir(parents=True)
    path.touch()
    check(params(train__pretrained_weights=str(path)), LABELS)


# modules


@pytest.mark.parametrize(
    ("key", "setting"),
    [
        ("loss__custom", "train.loss.custom"),
        ("optimiser__name", "train.optimiser.name"),
        ("schedule__name", "train.schedule.name"),
        ("network", "train.network"),
        ("callbacks", "train.callbacks[0]"),
    ],
)
def test_a_module_that_is_not_found_is_told_with_the_file_it_would_be(key, setting):
    path = "my_code.losses:focal"
    found = only(refused(**{f"train__{key}": [path] if key == "callbacks" else path}))
    assert (found["what"], found["found"]) == ("no such module", path)
    assert found["where"] == f"params.yaml: {setting}"
    assert "my_code/losses.py in the folder of params.yaml is my_code.losses" in found["cure"]


@pytest.mark.parametrize("file", ["my_code.py", "my_code/__init__.py"])
def test_a_module_is_found_but_not_run(working_directory, file):
    (working_directory / file).parent.mkdir(exist_ok=True)
    (working_directory / file).write_text("raise AssertionError('it was imported')\n")
    check(params(train__network="my_code:Net", train__callbacks=["my_code:one"]), LABELS)
    assert "my_code" not in sys.modules


def test_a_module_without_its_package_file_is_found(working_directory):
    (working_directory / "spaces").mkdir()
    (working_directory / "spaces/losses.py").write_text("raise AssertionError('it was imported')\n")
    check(params(train__loss__custom="spaces.losses:focal"), LABELS)
    assert "no such module" in refused(train__loss__custom="spaces.other:focal")


def test_a_compiled_module_of_the_working_directory_is_found(working_directory):
    (working_directory / f"fast_loss{EXTENSION_SUFFIXES[0]}").touch()
    check(params(train__loss__custom="fast_loss:focal"), LABELS)
    assert str(working_directory) not in sys.path


def test_installed_modules_are_found():
    check(params(train__optimiser__name="torch.optim:RMSprop", train__callbacks=["json:dumps"]), LABELS)


# the device


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_fp16_on_a_device_without_it(device):
    found = only(refused(train__precision="fp16", runtime__device=device))
    assert (found["what"], found["where"]) == ("fp16 needs CUDA", "params.yaml: train.precision")
    assert device in found["found"]


def test_fp16_where_it_may_work():
    for device in ("auto", "cuda", "cuda:1"):
        check(params(train__precision="fp16", runtime__device=device), LABELS)
    check(params(train__precision="bf16", runtime__device="cpu"), LABELS)


# what it costs


def test_it_imports_neither_torch_nor_the_users_module(working_directory):
    """Each call of snakemake begins with it."""
    (working_directory / "my_code.py").write_text("raise AssertionError('it was imported')\n")
    settings = yaml.safe_load((REPO / "params.yaml").read_text())
    settings["train"].update(network="my_code:Net", callbacks=["torch.optim:RMSprop"])
    (working_directory / "params.yaml").write_text(yaml.safe_dump(settings))
    code = (
        "import sys\n"
        "from segpipe import params\n"
        "from segpipe.data import labels\n"
        "from segpipe.training.check import check\n"
        "check(params.load(), labels.parse({'background': 0, 'liver': 1}, None, ''))\n"
        "found = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(found & {'torch', 'matplotlib', 'my_code', 'segpipe'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("['segpipe']\n", "")


def test_published_weights_are_this_projects_however_they_are_named(tmp_path, monkeypatch):
    """An absolute path names them as well; those of another project are any other file."""
    published = "results/3d_fullres/fold_0/checkpoint_final.pth"
    for project in ("here", "other"):
        file = tmp_path / project / published
        file.parent.mkdir(parents=True)
        file.touch()
    monkeypatch.chdir(tmp_path / "here")
    for path in (published, str(tmp_path / "here" / published), f"./{published}"):
        with pytest.raises(SegpipeError, match="what this training replaces"):
            check(params(train__pretrained_weights=path), LABELS)
    check(params(train__pretrained_weights=f"../other/{published}"), LABELS)
