"""Where a training starts from: weights of segpipe's and nnU-Net's checkpoints, frozen parameters."""

import io
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import DATA, params, planned, wave
from torch import nn

from segpipe.errors import SegpipeError
from segpipe.training import checkpoint
from segpipe.training.network import PlainConvUNet, build
from segpipe.training.pretrained import freeze, load_into, table

NNUNET = DATA / "nnunet_checkpoint.pth"  # of data/make_nnunet_checkpoint.py: one channel, three classes
PLAN = planned([8, 8, 8], features_per_stage=[2, 4, 4])


def network(channels=1, classes=3, **changes):
    return PlainConvUNet(channels, classes, planned([8, 8, 8], **{"features_per_stage": [2, 4, 4], **changes}))


def state(of):
    return {name: tensor.clone() for name, tensor in of.state_dict().items()}


def results(rows, result):
    return [name for name, found in rows if found == result]


def refused(function, *arguments):
    with pytest.raises(SegpipeError) as error:
        function(*arguments)
    text = str(error.value)
    for line in ("where:", "found:", "expected:", "cure:"):
        assert line in text
    return text


def written(path: Path, content) -> str:
    checkpoint.save(path, content)
    return str(path)


# nnU-Net's


def nnunet_weights():
    needed = [np._core.multiarray.scalar, np.dtype, type(np.dtype("f8")), type(np.dtype("f4"))]
    with torch.serialization.safe_globals(needed):
        return torch.load(NNUNET, weights_only=True)["network_weights"]


def test_nnunets_checkpoint_loads_but_for_its_heads():
    ours = network()
    before = state(ours)
    rows = load_into(ours, str(NNUNET))
    theirs = nnunet_weights()
    assert [name for name, _ in rows] == list(before)
    assert results(rows, "head, not taken") == [name for name in before if name.startswith("decoder.seg_layers.")]
    assert len(results(rows, "head, not taken")) == 4
    assert len(results(rows, "taken")) == len(before) - 4
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, (before if ".seg_layers." in name else theirs)[name])
        assert not torch.equal(before[name], theirs[name]) or name.endswith(("norm.weight", "norm.bias"))


def test_with_its_heads_as_well_the_network_answers_as_nnunets():
    ours = network()
    load_into(ours, str(NNUNET))
    theirs = nnunet_weights()
    for name, tensor in ours.state_dict().items():
        if ".seg_layers." in name:
            tensor.copy_(theirs[name])
    with torch.no_grad():
        answer = ours.eval()(wave(1, 1, 8, 8, 8))
    assert np.allclose(answer, np.load(DATA / "nnunet_checkpoint.npy"), atol=1e-6)


def test_other_classes_do_not_matter():
    rows = load_into(network(classes=7), str(NNUNET))
    assert {result for _, result in rows} == {"taken", "head, not taken"}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("key", ["network", "network_weights"])
def test_prefixes_of_wrappers_do_not_matter(tmp_path, key, prefix):
    source, target = build(1, 3, PLAN, params(train__seed=8).train), network()
    content = {key: {prefix + name: tensor for name, tensor in source.state_dict().items()}}
    rows = load_into(target, written(tmp_path / "wrapped.pth", content))
    assert len(results(rows, "taken")) == len(rows) - 4
    name = "encoder.stages.1.0.convs.0.conv.weight"
    assert torch.equal(target.state_dict()[name], source.state_dict()[name])


def test_a_module_that_is_called_module_keeps_its_name(tmp_path):
    class Wrapping(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)

    path = written(tmp_path / "a.pth", {"network": Wrapping().state_dict()})
    assert [result for _, result in load_into(Wrapping(), path)] == ["taken", "taken"]


def test_heads_of_a_custom_network_are_heads_wherever_they_stand(tmp_path):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(2, 2, bias=False)
            self.seg_layers = nn.Linear(2, 2, bias=False)

    rows = load_into(Flat(), written(tmp_path / "a.pth", {"network": Flat().state_dict()}))
    assert rows == [("body.weight", "taken"), ("seg_layers.weight", "head, not taken")]


# segpipe's


def test_our_checkpoint_loads_but_for_its_heads(tmp_path):
    source = build(1, 3, PLAN, params(train__seed=8).train)
    target = network()
    before = state(target)
    rows = load_into(target, written(tmp_path / "ours.pth", {"network": source.state_dict(), "epoch": 3}))
    assert len(results(rows, "taken")) == len(rows) - 4
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, (before if ".seg_layers." in name else source.state_dict())[name])


def test_what_does_not_fit_stays_and_is_told(tmp_path, caplog):
    """Two channels instead of one, and a checkpoint without the last stage."""
    weights = {name: tensor for name, tensor in network().state_dict().items() if "encoder.stages.2" not in name}
    target = network(channels=2)
    before = state(target)
    with caplog.at_level(logging.INFO):
        rows = load_into(target, written(tmp_path / "part.pth", {"network": weights}))
    first = "encoder.stages.0.0.convs.0.conv.weight"
    assert dict(rows)[first] == "shape (2, 1, 3, 3, 3) instead of (2, 2, 3, 3, 3)"
    absent = results(rows, "not in the checkpoint")
    assert absent == [name for name in before if "encoder.stages.2" in name]
    assert len(results(rows, "taken")) == len(rows) - 4 - 1 - len(absent)
    for name in [first, *absent]:
        assert torch.equal(target.state_dict()[name], before[name])
    assert table(rows) in caplog.text
    assert "part.pth (segpipe)" in caplog.text


def test_the_table_has_a_line_per_result_and_module():
    rows = [
        ("encoder.stages.0.0.convs.0.conv.weight", "shape (2, 1) instead of (2, 2)"),
        ("encoder.stages.0.0.convs.0.conv.bias", "taken"),
        ("encoder.stages.1.0.convs.0.conv.bias", "taken"),
        ("encoder.stages.1.0.convs.0.conv.weight", "taken"),
        ("decoder.seg_layers.0.bias", "head, not taken"),
    ]
    assert table(rows).splitlines() == [
        "  result                          module                tensors",
        "  taken                           encoder.stages.0            1",
        "  taken                           encoder.stages.1            2",
        "  shape (2, 1) instead of (2, 2)  encoder.stages.0            1",
        "  head, not taken                 decoder.seg_layers.0        1",
        "  of 5 tensors taken: 3; head, not taken: 1; not in the checkpoint: 0; another shape: 1",
    ]


def test_weights_are_taken_to_the_networks_type_and_stay_trainable(tmp_path):
    weights = {name: tensor.half() for name, tensor in network().state_dict().items()}
    target = network()
    load_into(target, written(tmp_path / "half.pth", {"network": weights}))
    assert all(p.dtype == torch.float32 and p.requires_grad and p.is_leaf for p in target.parameters())


# refused


def test_nothing_matched_is_an_error(tmp_path):
    target = network(features_per_stage=[3, 6, 8])
    before = state(target)
    text = refused(load_into, target, str(NNUNET))
    assert "params.yaml: train.pretrained_weights" in text
    assert "(2, 1, 3, 3, 3)" in text
    assert "(3, 1, 3, 3, 3)" in text
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_heads_alone_are_no_match(tmp_path):
    weights = {name: tensor for name, tensor in network().state_dict().items() if ".seg_layers." in name}
    assert "no pretrained weight fits" in refused(
        load_into, network(), written(tmp_path / "a.pth", {"network": weights})
    )


def test_an_absent_file_is_told(tmp_path):
    text = refused(load_into, network(), str(tmp_path / "absent.pth"))
    assert "absent.pth" in text
    assert "no file" in refused(load_into, network(), str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", NNUNET.read_bytes()[:5000]], ids=["empty", "text", "half"])
def test_a_broken_file_is_told(tmp_path, content):
    (tmp_path / "broken.pth").write_bytes(content)
    text = refused(load_into, network(), str(tmp_path / "broken.pth"))
    assert "cannot be read" in text
    assert "broken.pth" in text
    assert "weights_only" not in text


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 1}, {"network": {}}, {"network_weights": {"a": 3.0}}])
def test_a_file_without_tensors_by_name_is_told(tmp_path, content):
    text = refused(load_into, network(), written(tmp_path / "other.pth", content))
    assert "the file is no checkpoint" in text
    assert "'network_weights' (nnU-Net)" in text


class Harm:
    """What a malicious checkpoint does when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_nothing_in_a_file_is_executed(tmp_path):
    content = {"network_weights": network().state_dict(), "logging": Harm(tmp_path / "harm")}
    text = refused(load_into, network(), written(tmp_path / "harmful.pth", content))
    assert "could run code" in text
    assert "mkdir" in text
    assert not (tmp_path / "harm").exists()


def test_numpys_arrays_of_objects_are_not_opened(tmp_path):
    content = {"network_weights": network().state_dict(), "logging": np.array([1, None])}
    assert "could run code" in refused(load_into, network(), written(tmp_path / "objects.pth", content))


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8, np.bool_])
def test_numpys_numbers_are_opened(tmp_path, kind):
    content = {"network_weights": network().state_dict(), "_best_ema": kind(1), "type": np.dtype(kind)}
    assert results(load_into(network(), written(tmp_path / "numbers.pth", content)), "taken")


def test_the_old_name_of_numpys_core_is_known(tmp_path):
    """As numpy 1 wrote it: the module was called numpy.core."""
    buffer = io.BytesIO()
    torch.save(
        {"network_weights": network().state_dict(), "a": np.float64(1)}, buffer, _use_new_zipfile_serialization=0
    )
    content = buffer.getvalue()
    assert b"cnumpy._core.multiarray\n" in content
    (tmp_path / "old.pth").write_bytes(content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert results(load_into(network(), str(tmp_path / "old.pth")), "taken")


# frozen


def trainable(of):
    return [name for name, parameter in of.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize(
    ("patterns", "prefixes"),
    [
        ([], ()),
        (["encoder.*"], ("encoder.",)),
        (["encoder.stages.0.*", "decoder.transpconvs.*"], ("encoder.stages.0.", "decoder.transpconvs.")),
        (["encoder.*", "encoder.stages.0.*"], ("encoder.",)),
    ],
)
def test_frozen_is_what_a_pattern_matches(patterns, prefixes):
    target = network()
    frozen = freeze(target, patterns)
    assert frozen == [name for name, _ in target.named_parameters() if name.startswith(prefixes)] or not patterns
    assert trainable(target) == [name for name, _ in target.named_parameters() if name not in frozen]


def test_a_pattern_may_name_the_end():
    assert all(name.endswith("norm.weight") for name in freeze(network(), ["*.norm.weight"]))


def test_every_pattern_that_matches_nothing_is_told_with_the_nearest():
    target = network()
    text = refused(freeze, target, ["encodr.*", "encoder.*", "decoder.seg_layer.*", "ENCODER.*"])
    assert "3 problems" in text
    assert "params.yaml: train.freeze" in text
    assert "found:    'encodr.*'" in text
    assert "did you mean 'encoder.*'" in text
    assert "did you mean 'decoder.seg_layers.*'" in text
    assert "found:    'ENCODER.*'" in text
    assert len(trainable(target)) == len(list(target.parameters()))


def test_everything_frozen_is_an_error():
    target = network()
    text = refused(freeze, target, ["encoder.*", "decoder.*"])
    assert "nothing is left to train" in text
    assert "params.yaml: train.freeze" in text
    assert len(trainable(target)) == len(list(target.parameters()))


def test_what_was_never_trained_does_not_count_as_left():
    target = network()
    target.decoder.requires_grad_(False)
    assert "nothing is left to train" in refused(freeze, target, ["encoder.*"])
