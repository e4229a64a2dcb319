"""What a training is: the digest of all that decides its weights, and the shorter training that it may continue."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from segpipe import digest, plugins
from segpipe.data.splits import Fold
from segpipe.errors import SegpipeError, problem
from segpipe.params import Params, Train, section
from segpipe.prepare.store import Store
from segpipe.training.schedule import length

FILE = "identity.json"
LENGTH = ("epochs", "max_steps")


@dataclass(frozen=True)
class Identity:
    """Digests of a training.

    settings : of settings, plan and code; equal in all folds of a configuration
    digest : of this fold; the name of the folder that keeps its state
    but_length : of this fold, whatever its length
    total_steps : its length
    parent : folder of the finished, shorter training that this one continues, or None
    lineage : digest of the settings and length in steps of all trainings that this one continues, the first one first
    """

    settings: str
    digest: str
    but_length: str
    total_steps: int
    parent: Path | None = None
    lineage: list[dict[str, Any]] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """What a longer training looks for."""
        return {key: value for key, value in asdict(self).items() if key != "parent"}


def identify(store: Store, fold: Fold, params: Params, states: Path) -> Identity:
    """The identity of the training that params.yaml asks for.

    states : the folder that keeps the states of a fold's trainings, where `train.on_extend: continue` looks for the
        longest finished training that differs in nothing but its length
    Raises SegpipeError where a file or a module that the settings name is absent.
    """
    settings = {key: value for key, value in section(params, "train").items() if key != "on_extend"}
    but_length = {key: value for key, value in settings.items() if key not in LENGTH}
    planned = {key: value for key, value in asdict(store.planned).items() if key != "reasons"}
    others = [planned, store.cases.labels, digest.of_code("train"), _of_extensions(params.train)]
    whole, part = digest.of([settings, *others]), digest.of([but_length, *others])
    of_fold = [store.digest, fold]
    total_steps = length(params.train, len(fold["train"]), store.planned.batch_size).total_steps
    identity = Identity(whole, digest.of([whole, *of_fold]), digest.of([part, *of_fold]), total_steps)
    if params.train.on_extend == "restart" or (states / identity.digest / FILE).exists():
        return identity
    parent = shorter(identity, states)
    return identity if parent is None else _continuation(identity, parent)


def shorter(identity: Identity, states: Path) -> Path | None:
    """The folder of the longest finished training that differs in nothing but its shorter length, if there is one."""
    found = [
        (record["total_steps"], path.parent)
        for path in states.glob(f"*/{FILE}")
        if (record := digest.read_json(path))["but_length"] == identity.but_length
        and record["total_steps"] < identity.total_steps
        and (path.parent / "final.pth").exists()
        and (path.parent / "latest.pth").exists()
    ]
    return max(found)[1] if found else None


def _continuation(identity: Identity, parent: Path) -> Identity:
    """Another training than one from the start: it has another digest and a folder of its own."""
    record = digest.read_json(parent / FILE)
    lineage = [*record["lineage"], {"settings": record["settings"], "total_steps": record["total_steps"]}]
    return replace(
        identity,
        settings=digest.of([identity.settings, record["settings"]]),
        digest=digest.of([identity.digest, record["digest"]]),
        parent=parent,
        lineage=lineage,
    )


def _of_extensions(settings: Train) -> dict[str, str]:
    """Digests of what the settings name outside of the package: modules by their meaning, weights by their bytes."""
    found = {setting: plugins.source_digest(path, setting) for setting, path in settings.import_paths().items()}
    if settings.pretrained_weights is not None:
        found["train.pretrained_weights"] = _of_weights(Path(settings.pretrained_weights))
    if settings.full_validation.every is not None:
        found["train.full_validation"] = digest.of_code("validate")  # its Dice may decide what is best
    return found


def _of_weights(path: Path) -> str:
    if not path.is_file():
        raise SegpipeError(
            problem(
                "no pretrained weights",
                where="params.yaml: train.pretrained_weights",
                found=f"{path}: no such file",
                expected="a checkpoint (.pth) of segpipe or nnU-Net",
                cure="correct the path, or set null",
            )
        )
    return digest.of_file(path)
