"""A MODEL as ONNX: a file per configuration and fold, and preprocessing.json with all that is done around them.

What the files hold is the network alone. Its instance norm becomes ONNX's own: written as segpipe computes it, with the
batch among the channels, it would hold for one size of batch only.
"""

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import instance_norm

from segpipe import digest
from segpipe.errors import SegpipeError, problem
from segpipe.inference import memory, models
from segpipe.inference.models import Ensemble
from segpipe.inference.predict import Model
from segpipe.interop import onnx_description
from segpipe.interop.onnx_description import INPUT, OPSET, OUTPUT, Written
from segpipe.training.network import n_inputs
from segpipe.training.unet import InstanceNorm2d, InstanceNorm3d

log = logging.getLogger(__name__)

DESCRIPTION = "preprocessing.json"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Of a patch's largest logit. Other sums of the same float32 numbers end up 1e-6 to 1e-5 of it away.
TOLERANCE = 1e-3


def export_model(
    model: Path,
    out: Path,
    kind: str,
    weights: str,
    configurations: Sequence[str] | None = None,
    folds: Sequence[str] | None = None,
) -> None:
    """Write <configuration>/fold_<k>.onnx for each network, those of first stages included, and preprocessing.json.

    kind : final or best; weights : raw or averaged; configurations, folds : as `models.find` takes them
    Raises SegpipeError where `out` exists, without the packages for ONNX, for a network that cannot be written as ONNX,
    and where onnxruntime finds other logits than torch; then nothing is written.
    """
    _require_packages()
    if out.exists():
        raise _error("the folder exists", "--out", out, "a new one", "remove it, or name another")
    found = models.find(model, kind, configurations, folds)
    paths = [path for of_folds in found.values() for path in of_folds.values()]
    with memory.told("the networks of all folds"):
        wanted = configurations or models.counted(found)
        ensemble = models.load(paths, wanted, torch.device("cpu"), weights, precision="off")
    with digest.new_folder(out) as folder:
        written = {name: _export_configuration(ensemble, name, [*found[name]], folder) for name in ensemble.models}
        described = onnx_description.of(ensemble, written, kind, TOLERANCE)
        digest.write_json(folder / DESCRIPTION, described)


def _export_configuration(ensemble: Ensemble, name: str, folds: Sequence[str], folder: Path) -> list[Written]:
    model, written = ensemble.models[name], []
    (folder / name).mkdir()
    for fold, network, checkpoint in zip(folds, model.networks, model.files, strict=True):
        file, where = f"{name}/fold_{fold}.onnx", f"{name}, fold {fold}"
        patches = _patches(model)
        _write(network, patches, folder / file, where)
        compared = _compare(network, patches[:1], folder / file, where)
        _require_equal(compared, where)
        log.info("%s: logits of a patch within %.1e of torch's", file, compared.difference)
        written.append(Written(fold, file, checkpoint, compared.difference, compared.largest))
    return written


def _patches(model: Model) -> Tensor:
    """Two random inputs of a network: noise, and random labels of the stage before as it sees them."""
    n_channels = len(model.content["channel_names"])
    n_before = n_inputs(n_channels, model.labels, model.planned) - n_channels
    patch, draw = model.planned.patch_size, torch.Generator().manual_seed(0)
    noise = torch.randn(2, n_channels, *patch, generator=draw)
    before = torch.randint(n_before + 1, (2, 1, *patch), generator=draw)
    values = torch.arange(1, n_before + 1).view(1, -1, *(1,) * len(patch))
    return torch.cat([noise, (before == values).float()], 1)


# ---- from torch to ONNX ----------------------------------------------------------------------------------------------


class _InstanceNorm(nn.Module):
    """The instance norm of segpipe's networks as one operation, for any batch."""

    def __init__(self, norm: InstanceNorm2d | InstanceNorm3d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) to the same shape."""
        return instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)

    def flat(self, x: Tensor) -> Tensor:
        """What a convolution block asks for; it gives the result its shape."""
        return self(x)


def _portable(network: nn.Module) -> nn.Module:
    """A copy with instance norms that ONNX knows."""
    network = copy.deepcopy(network)
    for module in [*network.modules()]:
        for name, child in [*module._modules.items()]:  # one that has two names stands there twice
            if isinstance(child, InstanceNorm2d | InstanceNorm3d):
                setattr(module, name, _InstanceNorm(child))
    return network


def _write(network: nn.Module, patches: Tensor, path: Path, where: str) -> None:
    """Write a network for patches of this shape, in batches of any size.

    Beyond ONNX's limit of 2 GB torch puts the weights into a second file, named after the first.
    """
    any_batch = ({0: torch.export.Dim("batch")},)
    try:
        with _quiet():
            # by itself torch.onnx.export would try other ways, one of which fixes the size of the batch without a word
            captured = torch.export.export(_portable(network), (patches,), dynamic_shapes=any_batch, strict=False)
            program = torch.onnx.export(
                captured,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamic_shapes=any_batch,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # whatever a network of the user's own leads to
        raise _error(
            "a network that cannot be written as ONNX",
            where,
            _reason(error),
            "a forward pass of tensor operations alone, for any size of batch",
            "change its forward, without branches on values, `len` of a tensor, and loops over the batch",
        ) from error
    assert program is not None
    _forget_origin(program.model)
    program.save(path)


def _forget_origin(model: Any) -> None:
    """Of each operation torch notes the lines of code, with the paths of this machine."""
    for graph in (model.graph, *model.functions.values()):
        graph.metadata_props.clear()
        for node in graph:
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()


def _reason(error: BaseException) -> str:
    """The first line of what was wrong at first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no reason given')}"


# ---- whether both say the same ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Compared:
    """Logits of the same patch. difference : the largest between both; largest : of torch's, its absolute value"""

    difference: float
    largest: float


def _compare(network: nn.Module, patch: Tensor, path: Path, where: str) -> _Compared:
    """Run the file, as another program will."""
    import onnxruntime  # noqa: PLC0415  # an extra

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (found,) = session.run([OUTPUT], {INPUT: patch.numpy()})
    except Exception as error:  # onnxruntime has no class for all that it may say
        cure = "give train.network operations that onnxruntime has; another version of it may have more"
        raise _error("onnxruntime cannot run the network", where, _reason(error), "logits of a patch", cure) from error
    with torch.inference_mode():
        expected = network(patch).numpy()
    difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else np.inf
    return _Compared(difference, float(np.abs(expected).max()))


def _require_equal(compared: _Compared, where: str) -> None:
    if not compared.difference <= TOLERANCE * compared.largest:
        raise _error(
            "onnxruntime finds other logits than torch",
            where,
            f"a difference of {compared.difference:.2g} on a random patch with logits up to {compared.largest:.2g}",
            f"at most {TOLERANCE:g} of the largest logit",
            "report it with the network; another version of onnxruntime or torch may do",
        )


# ---- what is around it -----------------------------------------------------------------------------------------------


def _require_packages() -> None:
    absent = [name for name in PACKAGES if find_spec(name) is None]
    if absent:
        raise _error(
            "ONNX needs packages of its own",
            "segpipe export-onnx",
            f"no module {', '.join(absent)}",
            ", ".join(PACKAGES),
            "pip install 'segpipe[onnx]', or these packages themselves",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own messages, which are for those who write exporters."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _error(what: str, where: object, found: object, expected: object, cure: str) -> SegpipeError:
    return SegpipeError(problem(what, where=where, found=found, expected=expected, cure=cure))
