"""Whether the section `train` fits the dataset and what it names: before anything runs, and without torch."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from segpipe import plugins
from segpipe.data.labels import Labels
from segpipe.errors import SegpipeError, problem, raise_all
from segpipe.params import Params, Train
from segpipe.training import selection
from segpipe.training.schedule import length

PUBLISHED = r"[^/]+/fold_[^/]+/checkpoint_(final|best)\.pth"  # in results/
NEEDS = {"case_": "train.full_validation.every: 10", "averaged_": "train.ema.decay: 0.999"}


def check(params: Params, labels: Labels) -> None:
    """Raise SegpipeError naming everything in `train` that cannot work with a dataset of these labels."""
    settings = params.train
    raise_all(
        "params.yaml does not fit",
        [
            *_column_problems(settings, list(labels.foreground)),
            *class_weight_problems(settings.loss.class_weights or {}, labels),
            *_length_problems(settings),
            *_weights_problems(settings.pretrained_weights),
            *_module_problems(settings),
            *_precision_problems(params),
        ],
    )


def _column_problems(settings: Train, classes: list[str]) -> Iterator[str]:
    """Of a fitness or a monitor that no column of metrics.csv has, or that is no measure of an epoch."""
    known = [name for name in selection.columns(settings, classes) if name not in ("epoch", "step", "learning_rate")]
    summed = [name for name in known if name != "fitness_ema"]
    wanted = [("best.fitness", name, summed) for name in settings.best.fitness]
    wanted.append(("early_stopping.monitor", settings.early_stopping.monitor, known))
    for key, name, valid in wanted:
        if name not in valid:
            yield problem(
                "no such column in metrics.csv",
                where=f"params.yaml: train.{key}",
                found=name,
                expected=f"one of {', '.join(valid)}",
                cure=_column_cure(name, valid),
            )
    for name, weight in settings.best.fitness.items():
        if name in selection.LOSSES and weight > 0:
            yield problem(
                "the highest loss would be the best",
                where=f"params.yaml: train.best.fitness.{name}",
                found=weight,
                expected="a negative weight: the fitness is the better the higher",
                cure=f"write {-weight}",
            )


def _column_cure(name: str, valid: list[str]) -> str:
    """The setting that makes such columns, where it is off; else the nearest column."""
    for prefix, setting in NEEDS.items():
        if name.startswith(prefix) and not any(column.startswith(prefix) for column in valid):
            return f"set {setting}, which makes such columns"
    return f"did you mean {(difflib.get_close_matches(name, valid, 1, 0) or valid)[0]!r}?"


def class_weight_problems(named: Mapping[str, float], labels: Labels) -> Iterator[str]:
    """Of weights for classes that do not exist, and of weights that leave nothing to learn."""
    where = "params.yaml: train.loss.class_weights"
    for name in named:
        if name not in labels.heads:
            near = difflib.get_close_matches(name, labels.heads, n=1, cutoff=0.5)
            yield problem(
                "no such class",
                where=where,
                found=repr(name),
                expected=f"one of {', '.join(labels.heads)}",
                cure=f"did you mean {near[0]!r}?" if near else "remove it, or name a class of dataset.json",
            )
    if all(named.get(name) == 0 for name in labels.foreground):
        yield problem(
            "no class is left to learn",
            where=where,
            found="0 for every class but the background",
            expected="a weight above 0 for one of them at least",
            cure="raise one of the weights",
        )


def _length_problems(settings: Train) -> Iterator[str]:
    """Of a warm-up or a cadence that the training is too short for; where a pass is an epoch, its job finds them."""
    if settings.iterations_per_epoch == "pass":
        return
    try:
        selection.check_full_validation(settings, length(settings, 1, 1))
    except SegpipeError as error:
        yield str(error)


def _weights_problems(path: str | None) -> Iterator[str]:
    where, expected = "params.yaml: train.pretrained_weights", "a checkpoint (.pth) of segpipe or nnU-Net"
    if path is None:
        return
    file, results = Path(path).resolve(), Path("results").resolve()
    if file.is_relative_to(results) and re.fullmatch(PUBLISHED, file.relative_to(results).as_posix()):
        yield problem(
            "the pretrained weights are what this training replaces",
            where=where,
            found=path,
            expected="a file that no rule writes",
            cure="copy it, or name state/<digest>/final.pth beside it, which stays",
        )
    elif not Path(path).is_file():
        cure = "correct the path, which starts from the working directory, or set null"
        yield problem("no pretrained weights", where=where, found=f"{path}: no such file", expected=expected, cure=cure)


def _module_problems(settings: Train) -> Iterable[str]:
    for setting, path in settings.import_paths().items():
        module = path.partition(":")[0]
        if plugins.file_of(path) is None and find_spec(module.partition(".")[0]) is None:
            yield problem(
                "no such module",
                where=f"params.yaml: {setting}",
                found=path,
                expected="a module in the working directory, or an installed one",
                cure=f"correct it; {module.replace('.', '/')}.py in the folder of params.yaml is {module}",
            )


def _precision_problems(params: Params) -> Iterator[str]:
    if params.train.precision == "fp16" and params.runtime.device in ("cpu", "mps"):
        yield problem(
            "fp16 needs CUDA",
            where="params.yaml: train.precision",
            found=f"fp16 with runtime.device: {params.runtime.device}",
            expected="auto, bf16 or off",
            cure="set train.precision: auto",
        )
