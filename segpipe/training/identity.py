"""What a training is: the digest of all that decides its weights, and the shorter training that it may continue."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from segpipe import digest, plugins
from segpipe.data.splits import Fold
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
    base : the digest that it would have if it started from the beginning
    but_length : of this fold, whatever its length
    total_steps : its length
    parent : name of the folder of the finished, shorter training that this one continues, or None
    lineage : folder, digest of the settings and steps of all trainings that this one continues, the first one first
    """

    settings: str
    digest: str
    base: str
    but_length: str
    total_steps: int
    parent: str | None = None
    lineage: list[dict[str, Any]] = field(default_factory=list)

    def write(self, folder: Path, params: Params, steps: int | None = None) -> None:
        """Leave a record in the state's folder, for a longer training to find, and for people: the settings.

        steps : that were done, when it has ended
        """
        record = {**asdict(self), "steps": steps, "train": section(params, "train")}
        if not (folder / FILE).exists() or digest.read_json(folder / FILE) != record:
            digest.write_json(folder / FILE, record)


def identify(store: Store, fold: Fold, params: Params, states: Path) -> Identity:
    """The identity of the training that params.yaml asks for.

    states : the folder that keeps the states of a fold's trainings, where `train.on_extend: continue` looks for the
        longest finished training that differs in nothing but its length
    Raises SegpipeError where a module that the settings name is absent; `check` has seen to the files.
    """
    # the weights count by their bytes, not by where they lie
    left_out = ("on_extend", "pretrained_weights")
    settings = {key: value for key, value in section(params, "train").items() if key not in left_out}
    but_length = {key: value for key, value in settings.items() if key not in LENGTH}
    planned = {key: value for key, value in asdict(store.planned).items() if key != "reasons"}
    others = [planned, store.cases.labels.to_json(), digest.of_code("train"), _of_extensions(params.train)]
    whole, part = digest.of([settings, *others]), digest.of([but_length, *others])
    of_fold = [store.digest, fold]
    total_steps = length(params.train, len(fold["train"]), store.planned.batch_size).total_steps
    base = digest.of([whole, *of_fold])
    identity = Identity(whole, base, base, digest.of([part, *of_fold]), total_steps)
    if params.train.on_extend == "restart" or (states / base / "final.pth").exists():
        return identity
    return _begun(identity, states) or _continuation(identity, shorter(identity, states))


def shorter(identity: Identity, states: Path) -> dict[str, Any] | None:
    """The record of the longest finished training that differs in nothing but its shorter length, if there is one."""
    found = [
        record
        for record in _records(states)
        if record["but_length"] == identity.but_length
        and record["total_steps"] < identity.total_steps
        and record["steps"] is not None
        and (states / record["digest"] / "latest.pth").exists()
    ]
    return max(found, key=lambda record: (record["total_steps"], record["digest"])) if found else None


def _begun(identity: Identity, states: Path) -> Identity | None:
    """The continuation of these settings that was begun before, whatever other trainings have ended since."""
    for record in _records(states):
        if record["base"] != identity.base or record["parent"] is None:
            continue
        own, parent = states / record["digest"], states / record["parent"]
        if any(path.exists() for path in (own / "latest.pth", own / "final.pth", parent / "latest.pth")):
            return replace(identity, **{key: record[key] for key in ("settings", "digest", "parent", "lineage")})
    return None


def _continuation(identity: Identity, parent: dict[str, Any] | None) -> Identity:
    """Another training than one from the start: it has another digest and a folder of its own."""
    if parent is None:
        return identity
    return replace(
        identity,
        settings=digest.of([identity.settings, parent["settings"]]),
        digest=digest.of([identity.digest, parent["digest"]]),
        parent=parent["digest"],
        lineage=[*parent["lineage"], {key: parent[key] for key in ("digest", "settings", "steps")}],
    )


def _records(states: Path) -> list[dict[str, Any]]:
    return [digest.read_json(path) for path in sorted(states.glob(f"*/{FILE}"))]


def _of_extensions(settings: Train) -> dict[str, str]:
    """Digests of what the settings name outside of the package: modules by their meaning, weights by their bytes."""
    found = {setting: plugins.source_digest(path, setting) for setting, path in settings.import_paths().items()}
    if settings.pretrained_weights is not None:
        found["train.pretrained_weights"] = digest.of_file(Path(settings.pretrained_weights))
    if settings.full_validation.every is not None:
        found["train.full_validation"] = digest.of_code("full_validation")  # its Dice may decide what is best
    return found
