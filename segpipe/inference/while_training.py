"""Validation and prediction with the checkpoints of a training that has not ended.

The workflow knows only what a finished training publishes; these results lie beside its own under other names, and
no rule, summary or cross-validation takes them for finished ones.
"""

from dataclasses import dataclass
from pathlib import Path

from segpipe.data import splits
from segpipe.data.cases import Cases
from segpipe.errors import SegpipeError, problem
from segpipe.inference import validation
from segpipe.inference.predict_dataset import predict_dataset
from segpipe.params import Params
from segpipe.prepare import store
from segpipe.prepare.store import Store
from segpipe.training import check
from segpipe.training.identity import identify

# Checkpoint to what its results are called: validation_best belongs to the workflow.
NAMES = {"latest": "latest", "best": "best_so_far"}


@dataclass(frozen=True)
class _Training:
    """A training under way. results : its folder; splits : the file"""

    store: Store
    splits: Path
    results: Path
    checkpoint: Path


def validate(configuration: str, fold: str, checkpoint: str, params: Params) -> None:
    """Validate a fold's training with its present latest or best checkpoint, into validation_{latest,best_so_far}.

    Raises SegpipeError where there is no such training or no such checkpoint yet.
    """
    training = _find(configuration, fold, checkpoint, params)
    out = training.results / f"validation_{NAMES[checkpoint]}"
    validation.validate(training.store, training.splits, fold, training.checkpoint, out, params)


def predict(configuration: str, fold: str, checkpoint: str, params: Params) -> None:
    """Predict imagesTs with a training's present latest or best checkpoint, into predictions_{latest,best_so_far}.

    Raises SegpipeError as `validate` does, and where there are no images to predict.
    """
    training = _find(configuration, fold, checkpoint, params)
    cases = training.store.cases
    if not cases.test:
        raise SegpipeError(
            problem(
                "nothing to predict",
                where=cases.root / "imagesTs",
                found="no images when the dataset was checked",
                expected="images without label",
                cure="put them there and run snakemake, which lists them",
            )
        )
    paths = [training.checkpoint, *_first_stage(training.store.planned.previous_stage, params)]
    out = training.results / f"predictions_{NAMES[checkpoint]}"
    predict_dataset(cases, paths, [configuration], out, params)


def _first_stage(configuration: str | None, params: Params) -> list[Path]:
    """The finished models that a cascade sees the segmentation of."""
    name = f"checkpoint_{params.validate_.checkpoint}.pth"
    return [Path("results", configuration, f"fold_{fold}", name) for fold in params.folds] if configuration else []


def _find(configuration: str, fold: str, checkpoint: str, params: Params) -> _Training:
    """The training that the present params.yaml asks for, with the checkpoint that it has now."""
    _require("--checkpoint", checkpoint, checkpoint in NAMES, " or ".join(NAMES))
    _require("--fold", fold, fold.isdecimal() or fold == "all", "a number, or all")
    prepared = Path("data/preprocessed") / params.dataset_name
    plan, manifest, splits_file = (
        prepared / name for name in ("plan.json", f"{configuration}/manifest.json", "splits.json")
    )
    results = Path("results") / configuration / f"fold_{fold}"
    for path in (prepared / "cases.json", plan, manifest, splits_file):
        if not path.exists():
            raise _nothing_yet(path, "no such file: the dataset is not prepared yet", results)
    opened = store.ensure(Cases.read(prepared / "cases.json", params.dataset), plan, manifest, params.runtime)
    check.check(params, opened.cases.labels)
    states = results / "state"
    state = states / identify(opened, splits.read(splits_file, fold), params, states).digest
    found = state / f"{checkpoint}.pth"
    if not found.exists():
        raise _nothing_yet(found, _reason(state), results)
    return _Training(opened, splits_file, results, found)


def _require(option: str, found: str, right: bool, expected: str) -> None:
    if not right:
        raise SegpipeError(problem("no such choice", where=option, found=found, expected=expected, cure="name one"))


def _reason(state: Path) -> str:
    """Why a checkpoint is not there."""
    if state.exists():
        return "a training that has saved none yet: its first epoch goes on, or runtime.disable_checkpointing is true"
    others = sorted(path.parent.name for path in state.parent.glob("*/latest.pth"))
    return f"no training with the present params.yaml; there are others: {', '.join(others) or 'none'}"


def _nothing_yet(path: Path, found: str, results: Path) -> SegpipeError:
    return SegpipeError(
        problem(
            "no checkpoint to use",
            where=path,
            found=found,
            expected="a training with the present params.yaml, one epoch old or more",
            cure=f"snakemake {results}/checkpoint_final.pth starts it; else wait for its first epoch, or put its "
            "settings back",
        )
    )
