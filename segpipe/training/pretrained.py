"""Where a training starts from: weights of another one, and parameters that stay as they are."""

import difflib
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from logging import getLogger
from pathlib import Path

import torch
from torch import Tensor, nn

from segpipe.errors import SegpipeError, problem, raise_all
from segpipe.training import checkpoint
from segpipe.training.network import is_head

log = getLogger(__name__)

KEYS = {"network": "segpipe", "network_weights": "nnU-Net"}  # where a checkpoint has its tensors by name
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
TAKEN, HEAD, ABSENT = "taken", "head, not taken", "not in the checkpoint"

Fate = tuple[str, str]  # of a parameter: its name, what became of it


def load_into(network: nn.Module, path: str) -> list[Fate]:
    """Copy all tensors but the heads' from a checkpoint of segpipe or nnU-Net, where name and shape agree.

    Logs a table of what matched. The rule is that of nnunetv2/run/load_pretrained_weights.py, which stops at the first
    tensor that does not match.

    Returns (name, "taken" | "head, not taken" | "not in the checkpoint" | "shape (..) instead of (..)") of every tensor
    of the network.

    Raises SegpipeError where the file is absent or no checkpoint, or where nothing matched.
    """
    maker, found = _read(Path(path))
    own = network.state_dict()
    offered = {own_name(name, own): tensor for name, tensor in found.items()}
    rows = [(name, _result(name, tensor, offered)) for name, tensor in own.items()]
    taken = [name for name, result in rows if result == TAKEN]
    if not taken:
        raise _error(
            "no pretrained weight fits the network",
            f"{path} ({maker}) has {_few(found)}",
            f"names and shapes such as {_few(own)}",
            "take a checkpoint of the same network and configuration, or set null",
        )
    with torch.no_grad():
        for name in taken:
            own[name].copy_(offered[name])
    log.info("weights of %s (%s):\n%s", path, maker, table(rows))
    return rows


def table(rows: list[Fate]) -> str:
    """One line for each result and module (as `encoder.stages.0`), with the number of its tensors; totals below."""
    groups = Counter((result, ".".join(name.split(".")[:3])) for name, result in rows)
    order = list(dict.fromkeys(result for _, result in sorted(rows, key=lambda row: row[1] != TAKEN)))
    lines = [(result, group, str(n)) for wanted in order for (result, group), n in groups.items() if result == wanted]
    lines.insert(0, ("result", "module", "tensors"))
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    text = [f"  {line[0]:{widths[0]}}  {line[1]:{widths[1]}}  {line[2]:>{widths[2]}}" for line in lines]
    totals = Counter("another shape" if result.startswith("shape") else result for _, result in rows)
    totals_text = "; ".join(f"{result}: {totals[result]}" for result in (TAKEN, HEAD, ABSENT, "another shape"))
    return "\n".join([*text, f"  of {len(rows)} tensors {totals_text}"])


def freeze(network: nn.Module, patterns: list[str]) -> list[str]:
    """Exclude the parameters that a pattern (`encoder.*`) matches from training; returns their names.

    Raises SegpipeError naming every pattern that matches nothing, and where nothing is left to train.
    """
    parameters = dict(network.named_parameters())
    matched = {pattern: [name for name in parameters if fnmatchcase(name, pattern)] for pattern in patterns}
    raise_all("params.yaml", [_unmatched(pattern, list(parameters)) for pattern in patterns if not matched[pattern]])
    frozen = [name for name in parameters if any(name in names for names in matched.values())]
    if frozen and not any(p.requires_grad for name, p in parameters.items() if name not in frozen):
        raise _error(
            "nothing is left to train",
            f"{patterns}, which leave none of {len(parameters)} parameters",
            "at least one that no pattern matches",
            'leave the heads at least: ["encoder.*", "decoder.stages.*", "decoder.transpconvs.*"]',
            "train.freeze",
        )
    for name in frozen:
        parameters[name].requires_grad_(False)
    return frozen


def _read(path: Path) -> tuple[str, Mapping[str, Tensor]]:
    """Who made a checkpoint, and its tensors by name."""
    expected = "a .pth file of segpipe or nnU-Net"
    if not path.is_file():
        cure = "correct the path, which starts from the working directory, or set null"
        raise _error("no pretrained weights", f"no file {path}", expected, cure)
    try:
        content = checkpoint.load_foreign(path)
    except Exception as error:  # a broken file may fail in any way
        cure = "take a complete checkpoint that holds tensors and numbers only; no other is opened"
        raise _error(
            "the pretrained weights cannot be read", f"{path}: {checkpoint.why_unreadable(error)}", expected, cure
        ) from error
    for key, maker in KEYS.items():
        weights = content.get(key) if isinstance(content, Mapping) else None
        if isinstance(weights, Mapping) and weights and all(isinstance(value, Tensor) for value in weights.values()):
            return maker, weights
    keys = ", ".join(map(str, content)) if isinstance(content, Mapping) else f"a {type(content).__name__}"
    wanted = " or ".join(f"{key!r} ({maker})" for key, maker in KEYS.items())
    raise _error(
        "the file is no checkpoint", f"{path} with {keys}", f"tensors by name under {wanted}", "take such a file"
    )


def own_name(name: str, own: Mapping[str, Tensor]) -> str:
    """The name without the prefixes of wrappers, where the network itself has none of that name."""
    while name not in own and (prefix := next((p for p in PREFIXES if name.startswith(p)), None)):
        name = name.removeprefix(prefix)
    return name


def _result(name: str, tensor: Tensor, offered: Mapping[str, Tensor]) -> str:
    if is_head(name):
        return HEAD
    if name not in offered:
        return ABSENT
    if offered[name].shape != tensor.shape:
        return f"shape {tuple(offered[name].shape)} instead of {tuple(tensor.shape)}"
    return TAKEN


def _few(tensors: Mapping[str, Tensor]) -> str:
    shown = [f"{name} {tuple(tensor.shape)}" for name, tensor in list(tensors.items())[:3]]
    return ", ".join([*shown, "..."] if len(tensors) > 3 else shown)


def _unmatched(pattern: str, names: list[str]) -> str:
    """A pattern that matches nothing, with the nearest names and patterns of whole modules."""
    parts = [name.split(".") for name in names]
    modules = [".".join(part[:n]) + ".*" for part in parts for n in range(1, len(part))]
    known = list(dict.fromkeys(modules + names))
    near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.5)
    return problem(
        "a pattern matches no parameter",
        where="params.yaml: train.freeze",
        found=repr(pattern),
        expected=f"a pattern of parameters' names, such as {names[0]}",
        cure=f"did you mean {' or '.join(map(repr, near))}?" if near else f"parts are {', '.join(_parts(names))}",
    )


def _parts(names: list[str]) -> list[str]:
    return list(dict.fromkeys(f"{name.partition('.')[0]}.*" for name in names))


def _error(
    what: str, found: object, expected: object, cure: str, setting: str = "train.pretrained_weights"
) -> SegpipeError:
    return SegpipeError(problem(what, where=f"params.yaml: {setting}", found=found, expected=expected, cure=cure))
