"""Layout and compilation change how a network runs, never what it computes."""

import logging
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from memory import setup, training, weights
from tiny import labels_of, params, planned
from torch import nn

from segpipe.training import execution
from segpipe.training.execution import Execution
from segpipe.training.loop import evaluate, train_step
from segpipe.training.loss import SegmentationLoss
from segpipe.training.network import create, outputs
from segpipe.training.unet import ConvBlock

CUDA, CPU, MPS = (torch.device(kind) for kind in ("cuda", "cpu", "mps"))


def chosen(device, monkeypatch=None, can_compile=True, n_steps=5000, **changes):
    if monkeypatch:
        monkeypatch.setattr(execution, "can_compile", lambda: can_compile)
    settings = params(**changes)
    return Execution.of(settings.runtime, settings.train, device, n_steps)


# the choice


@pytest.mark.parametrize(
    ("device", "can_compile", "changes", "compiled"),
    [
        (CUDA, True, {}, "fused"),
        (CUDA, False, {}, "never"),
        (CUDA, True, {"train__deterministic": True}, "never"),
        (CUDA, True, {"train__deterministic": True, "runtime__compile": "graphs"}, "never"),
        (CPU, True, {}, "never"),
        (MPS, True, {}, "never"),
        (CUDA, True, {"runtime__compile": "never"}, "never"),
        (CUDA, True, {"runtime__compile": "graphs"}, "graphs"),
        (CUDA, True, {"runtime__compile": "graphs", "train__accumulate": 2}, "fused"),
        (CPU, True, {"runtime__compile": "graphs"}, "fused"),
        (CPU, False, {"runtime__compile": "fused"}, "fused"),
    ],
)
def test_what_is_compiled(monkeypatch, device, can_compile, changes, compiled):
    assert chosen(device, monkeypatch, can_compile, **changes).compiled == compiled


def test_short_trainings_are_over_before_compiling_pays(monkeypatch):
    assert chosen(CUDA, monkeypatch, n_steps=4999).compiled == "never"
    assert chosen(CUDA, monkeypatch, n_steps=4999, runtime__compile="fused").compiled == "fused"


def test_graphs_that_cannot_be_are_said_to_be_none(caplog):
    chosen(CPU, runtime__compile="graphs")
    assert "fused instead of graphs" in caplog.text


def test_compiling_needs_triton_and_a_c_compiler(monkeypatch):
    monkeypatch.setattr(execution.importlib.util, "find_spec", lambda name: object() if name == "triton" else None)
    monkeypatch.setattr(execution.shutil, "which", lambda name: "/bin/gcc" if name == "gcc" else None)
    assert execution.can_compile()
    monkeypatch.setattr(execution.shutil, "which", lambda name: None)
    assert not execution.can_compile()
    monkeypatch.setattr(execution.shutil, "which", lambda name: "/bin/gcc")
    monkeypatch.setattr(execution.importlib.util, "find_spec", lambda name: None)
    assert not execution.can_compile()


# the layout


@pytest.mark.parametrize("architecture", ["plain", "resenc"])
@pytest.mark.parametrize("patch", [[16, 16, 16], [16, 24]])
def test_channels_last_computes_the_same(architecture, patch):
    plan = replace(planned(patch), architecture=architecture)
    plain, last = (training(plan, runtime__channels_last=wanted) for wanted in (False, True))
    memory_format = torch.channels_last if len(patch) == 2 else torch.channels_last_3d
    seen = []
    for name, module in last.network.named_modules():
        # oneDNN puts out of a kernel of one voxel, as in a skip, what it likes
        if "skip" not in name and isinstance(module, nn.InstanceNorm2d | nn.InstanceNorm3d | nn.LeakyReLU):
            module.register_forward_hook(lambda module, given, out: seen.append(out))
    for step in range(3):
        losses = [float(train_step(one, step, [one.feed.training(step)])) for one in (plain, last)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert torch.allclose(weights(plain.network), weights(last.network), atol=2e-5)
    assert all(out.is_contiguous(memory_format=memory_format) for out in seen)
    assert not all(out.is_contiguous() for out in seen)


@pytest.mark.parametrize("shape", [(2, 5, 6, 7, 8), (3, 4, 9, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_instance_norm_in_any_layout_is_torchs(shape, dtype):
    n_axes = len(shape) - 2
    plan = planned([8] * n_axes)
    norm = next(m for m in create(1, 2, plan, None).modules() if isinstance(m, nn.InstanceNorm2d | nn.InstanceNorm3d))
    own = type(norm)(shape[1], eps=norm.eps, affine=True)
    torchs = (nn.InstanceNorm3d if n_axes == 3 else nn.InstanceNorm2d)(shape[1], eps=norm.eps, affine=True)
    for module in (own, torchs):
        nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(1))
        nn.init.normal_(module.bias, generator=torch.Generator().manual_seed(2))
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 5).to(dtype)
    last = x.to(memory_format=torch.channels_last_3d if n_axes == 3 else torch.channels_last)
    assert not last.is_contiguous()
    result = own(last)
    assert result.dtype == dtype
    assert result.stride() == last.stride()
    tolerance = 1e-5 if dtype == torch.float32 else 0.04
    assert torch.allclose(result.float(), torchs(x.float()), atol=tolerance)
    assert torch.equal(own(x), torchs(x))
    with torch.no_grad():  # in float32 by another kernel of torch's
        assert torch.allclose(own(x), torchs(x), rtol=0, atol=1e-5 if dtype == torch.float32 else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("nonlinear", [True, False])
@pytest.mark.parametrize("n_axes", [2, 3])
def test_a_block_is_its_parts_without_copies(n_axes, nonlinear, dtype):
    """The bits of torch's modules one after the other, whose work in place autograd would copy the map for."""
    torch.manual_seed(0)
    block = ConvBlock(3, 4, [3] * n_axes, [1] * n_axes, nonlinear=nonlinear)
    norm = (nn.InstanceNorm3d if n_axes == 3 else nn.InstanceNorm2d)(4, eps=1e-5, affine=True)
    parts = nn.Sequential(deepcopy(block.conv), norm, nn.LeakyReLU(0.01) if nonlinear else nn.Identity())
    for module in (block.norm, norm):
        nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(1))
        nn.init.normal_(module.bias, generator=torch.Generator().manual_seed(2))
    x = torch.randn(2, 3, *[8] * n_axes)
    results = []
    for module in (block, parts):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            results.append(module(x))
        results[-1].float().square().mean().backward()
    assert torch.equal(*results)
    assert results[0].dtype == dtype
    gradients = [[parameter.grad for parameter in module.parameters()] for module in (block, parts)]
    assert all(map(torch.equal, *gradients))
    assert "CopySlices" not in str(graph_of(results[0]))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("nonlin", [None, nn.Identity(), nn.LeakyReLU(0.3), nn.ReLU()])  # None: as it is made
@pytest.mark.parametrize("shape", [(2, 3, 32, 16, 32), (2, 3, 6, 10)])  # the first is added up in parts
def test_a_compiled_block_is_the_block(shape, nonlin, channels_last):
    torch._dynamo.reset()  # which counts how often the code of a block was compiled
    torch.manual_seed(0)
    n_axes, x = len(shape) - 2, torch.randn(shape) + 2
    block = ConvBlock(3, 4, [3] * n_axes, [1] * n_axes)
    block.nonlin = nonlin or block.nonlin
    for parameter in block.parameters():
        nn.init.normal_(parameter, 0.5, 0.5)
    execution = Execution(channels_last, "never", falls_back=False)
    execution.lay_out(block)
    weights = torch.randn(2, 4, *shape[2:])
    results = []
    for module in (block, torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=False)):
        block.zero_grad()
        given = execution.laid_out(x).requires_grad_()
        result = module(given)
        (result * weights).sum().backward()
        results.append([result, given.grad, *(parameter.grad for parameter in block.parameters())])
        given.grad = None
    assert results[0][0].stride() == results[1][0].stride()
    for (name, _), one, other in zip([("", 0), ("x", 0), *block.named_parameters()], *results, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-2 if name == "conv.bias" else 1e-4), name
    if not isinstance(nonlin, nn.ReLU):
        assert not results[1][3].any()  # of the bias that the norm takes away again


def graph_of(result):
    """Names of what will be differentiated."""
    names, left = [], [result.grad_fn]
    while left:
        node = left.pop()
        names.append(node.name())
        left += [before for before, _ in node.next_functions if before is not None]
    return names


def test_the_running_mean_and_the_optimiser_take_over_the_layout():
    one = training(runtime__channels_last=True, train__ema__decay=0.9)
    train_step(one, 0, [one.feed.training(0)])
    kernels = [p for p in one.network.parameters() if p.ndim == 5 and not p.is_contiguous()]
    assert kernels
    averaged = dict(one.averaged.named_parameters())
    for name, parameter in one.network.named_parameters():
        if parameter.grad is not None and parameter.shape[2:].numel() > 1:
            assert averaged[name].stride() == parameter.stride()
            assert one.optimiser.state[parameter]["momentum_buffer"].stride() == parameter.stride()


# compiling


LABELS = {
    "plain": ({"background": 0, "one": 1, "two": 2}, None),
    "regions, ignore label": ({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, [1, 2]),
}


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("named", LABELS)
def test_the_loss_is_one_graph(named, batch_dice):
    """From the first step on; what is cached at its first use would have ended the graph there."""
    labels, graphs = labels_of(*LABELS[named]), []

    def backend(graph, example):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    loss = SegmentationLoss(params().train.loss, labels, batch_dice)
    n, label = len(labels.heads), torch.zeros(2, 8, 8, dtype=torch.int64)
    logits = [torch.zeros(2, n, 8, 8, requires_grad=True), torch.zeros(2, n, 4, 4, requires_grad=True)]
    compiled = torch.compile(loss, backend=backend, fullgraph=True, dynamic=False)
    for _ in range(2):
        compiled(logits, label, None, torch.ones(2, n, dtype=torch.bool))
    assert len(graphs) == 1


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_compiled_step_computes_the_same(monkeypatch, channels_last):
    """Captured and differentiated as for CUDA; the code generator, which takes half a minute here, is left out."""
    compiler, graphs = torch.compile, []

    changes = {"runtime__channels_last": channels_last}

    def traced(function, **options):
        graphs.append(function)
        return compiler(function, backend="aot_eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", traced)
    plan = replace(planned([8, 8]), strides=[[1, 1], [2, 2]])
    plan = replace(plan, features_per_stage=[4, 8], kernel_sizes=[[3, 3]] * 2, n_conv_per_stage=[1, 1])
    plan = replace(plan, n_conv_per_stage_decoder=[1])
    plain, fused = (training(plan, runtime__compile=how, **changes) for how in ("never", "fused"))
    assert plain.forward is outputs
    assert graphs == [outputs, fused.loss]
    for step in range(2):
        losses = [float(train_step(one, step, [one.feed.training(step)])) for one in (plain, fused)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert torch.allclose(weights(plain.network), weights(fused.network), atol=1e-5)


def failing(error):
    def call(*args):
        raise error

    return call


def test_what_cannot_be_compiled_runs_as_it_is_written(monkeypatch, caplog):
    calls = []

    def compiler(function, **options):
        return failing(torch._dynamo.exc.BackendCompilerFailed(print, RuntimeError("no compiler"), None))

    monkeypatch.setattr(torch, "compile", compiler)
    automatic = Execution(channels_last=False, compiled="fused", falls_back=True)
    function = automatic._as_chosen(lambda *args: calls.append(args) or "done", None)
    with caplog.at_level(logging.WARNING):
        assert [function(1), function(2)] == ["done", "done"]
    assert calls == [(1,), (2,)]
    assert caplog.text.count("not compiled") == 1
    asked = Execution(channels_last=False, compiled="fused", falls_back=False)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed):
        asked._as_chosen(print, None)()


def test_other_errors_of_a_compiled_function_are_not_swallowed(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: failing(torch.OutOfMemoryError("full")))
    automatic = Execution(channels_last=False, compiled="fused", falls_back=True)
    with pytest.raises(torch.OutOfMemoryError):
        automatic._as_chosen(print, None)()


def test_each_step_begins_anew_for_graphs(monkeypatch):
    began = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: began.append(1))
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    for compiled, times in (("fused", 0), ("graphs", 3)):
        one = replace(training(), execution=Execution(False, compiled, False))
        for step in range(3):
            train_step(one, step, [one.feed.training(step)])
        assert len(began) == times
        evaluate(one, lambda: None)
        assert len(began) == times + (2 if times else 0)  # two validation batches


# no waiting for the device


def test_a_step_asks_nothing_of_the_device(monkeypatch):
    """Tensors on `meta` have no values: whatever would wait for one, on CUDA, fails here."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **named: nullcontext())  # which knows no device meta
    one = setup()
    meta = replace(one, network=one.network.to("meta")).training(None, lambda: None)
    meta.device = torch.device("meta")
    batch = meta.feed.training(0)
    on_meta = replace(batch, image=batch.image.to("meta"), label=batch.label.to("meta"))
    assert meta.length.steps_per_epoch > 2  # the last step of an epoch waits
    loss = train_step(meta, 0, [on_meta])
    assert loss.device.type == "meta"
    with pytest.raises(RuntimeError, match="meta"):
        float(loss)


def test_a_backward_pass_that_cannot_be_compiled_is_not(monkeypatch, caplog):
    """Compiled when it is due, it would end the training: there nothing falls back."""
    from torch._dynamo.backends.common import aot_autograd

    def broken(graph, example):
        raise RuntimeError("no compiler for the backward pass")

    compiler, backend = (
        torch.compile,
        aot_autograd(fw_compiler=lambda graph, example: graph.forward, bw_compiler=broken),
    )
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiler(function, backend=backend))
    monkeypatch.setattr(execution, "can_compile", lambda: True)
    fused = Execution(channels_last=False, compiled="fused", falls_back=True)
    one = replace(training(), forward=fused.forward)
    assert train_step(one, 0, [one.feed.training(0)]).isfinite()
    assert "not compiled" in caplog.text
    assert "no compiler for the backward pass" in caplog.text


def test_other_shapes_are_compiled_for_themselves():
    """Two samples in training, three in validation: one graph for any number would be a slower one."""
    seen = []

    def backend(graph, example):
        seen.append([size for one in example if isinstance(one, torch.Tensor) for size in one.shape])
        return graph.forward

    fused = Execution(channels_last=False, compiled="fused", falls_back=False)
    torch._dynamo.reset()
    compiler = torch.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **options: compiler(function, backend=backend, **options))
        forward = fused.forward
    network = create(1, 2, planned([8, 8, 8]), None)
    for n in (2, 3, 4):
        forward(network, torch.zeros(n, 1, 8, 8, 8), 1)
    assert len(seen) == 3
    assert all(isinstance(size, int) for sizes in seen for size in sizes)
