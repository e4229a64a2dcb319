"""Networks as ONNX, and a program that knows preprocessing.json alone: it segments as `segpipe predict` does."""

import ast
import importlib.util
import json
import runpy
import sys

import nibabel
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from interop import IMAGES, segpipe
from tiny import TESTS, labels_of, planned
from torch import nn

from segpipe import digest
from segpipe.data import image
from segpipe.data.image import Volume
from segpipe.errors import SegpipeError
from segpipe.inference import models
from segpipe.inference.case import Asked, Case, predict_case
from segpipe.inference.models import Ensemble
from segpipe.inference.predict import Model
from segpipe.inference.presets import PRESETS
from segpipe.interop import onnx as exported
from segpipe.interop import onnx_description
from segpipe.interop.onnx_description import Written
from segpipe.training import checkpoint
from segpipe.training.network import create, n_inputs

SCRIPT = TESTS.parent / "docs/examples/predict_onnx.py"
CASE = "case_004"


@pytest.fixture(scope="module")
def of_cascade(cascade, tmp_path_factory):
    """Both stages, regions."""
    out = tmp_path_factory.mktemp("onnx") / "cascade"
    segpipe("export-onnx", cascade, "--out", out)
    return out


@pytest.fixture(scope="module")
def of_flat(flat, tmp_path_factory):
    """One fold of a residual network in 2d, classes."""
    out = tmp_path_factory.mktemp("onnx") / "flat"
    segpipe("export-onnx", flat, "--out", out, "--folds", "1")
    return out


@pytest.fixture(scope="module")
def example():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("predict_onnx", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def described(folder):
    return digest.read_json(folder / exported.DESCRIPTION)


def voxels(path):
    return np.asarray(nibabel.load(path).dataobj)


# ---- the real thing: the command, the files, the script --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["flat", "cascade"])
def test_the_script_segments_a_raw_file_as_predict_does(kind, request, tmp_path, monkeypatch):
    model, folder = request.getfixturevalue(kind), request.getfixturevalue(f"of_{kind}")
    folds = ["--folds", "1"] if kind == "flat" else []
    segpipe("predict", "--model", model, "-i", IMAGES, "-o", tmp_path, "--precision", "off", "--device", "cpu", *folds)
    out = tmp_path / "onnx.nii.gz"
    channels = sorted(IMAGES.glob(f"{CASE}_*.nii.gz"))
    monkeypatch.setattr(sys, "argv", [str(word) for word in (SCRIPT, folder, *channels, "-o", out)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    expected, found = voxels(tmp_path / f"{CASE}.nii.gz"), voxels(out)
    assert np.isin([0, 1, 2], expected).all()
    assert (found == expected).mean() >= 0.9999
    assert np.array_equal(nibabel.load(out).affine, nibabel.load(channels[0]).affine)


def test_the_script_needs_neither_segpipe_nor_torch():
    tree = ast.parse(SCRIPT.read_text())
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    named |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    outside = {name.partition(".")[0] for name in named} - sys.stdlib_module_names
    assert outside == {"numpy", "scipy", "nibabel", "onnxruntime"}


def test_a_folder_holds_a_file_per_network_and_the_description(of_cascade, of_flat):
    names = {str(path.relative_to(of_cascade)) for path in of_cascade.rglob("*") if path.is_file()}
    assert names == {"preprocessing.json", "3d_lowres/fold_0.onnx", "3d_cascade_fullres/fold_0.onnx"}
    (configuration,) = described(of_flat)["configurations"]
    assert [one["file"] for one in configuration["networks"]] == ["2d/fold_1.onnx"]


def test_a_file_takes_batches_of_any_size_of_one_patch(of_flat):
    (configuration,) = described(of_flat)["configurations"]
    session = onnxruntime.InferenceSession(of_flat / "2d/fold_1.onnx")
    for side, given in (("input", session.get_inputs()), ("output", session.get_outputs())):
        assert [(one.name, one.shape) for one in given] == [(configuration[side]["name"], configuration[side]["shape"])]
    several = np.random.default_rng(0).normal(size=(3, 2, 16, 16)).astype(np.float32)
    (together,) = session.run(["logits"], {"image": several})
    alone = [session.run(["logits"], {"image": one[None]})[0] for one in several]
    assert np.allclose(together, np.concatenate(alone), atol=1e-5)


def test_a_file_says_its_opset_and_nothing_of_this_machine(of_cascade):
    for path in of_cascade.rglob("*.onnx"):
        content = onnx.load(path)
        assert [(one.domain, one.version) for one in content.opset_import] == [("", onnx_description.OPSET)]
        assert {node.op_type for node in content.graph.node} >= {"Conv", "InstanceNormalization"}
        raw = path.read_bytes()
        assert str(TESTS.parent).encode() not in raw
        assert b"site-packages" not in raw


def test_the_description_says_what_was_compared_and_with_which_checkpoint(of_flat, flat):
    written = described(of_flat)
    (network,) = written["configurations"][0]["networks"]
    assert network["checkpoint"] == digest.of_file(flat / "2d/fold_1/checkpoint_final.pth")
    assert 0 < network["largest_difference"] <= written["tolerance"] * network["largest_logit"]
    assert written["versions"]["onnxruntime"] == onnxruntime.__version__


# ---- every rule, with networks of torch instead of files -------------------------------------------------------------


class Session:
    """A network of torch where the script expects one of onnxruntime."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def run(self, names, inputs):
        with torch.inference_mode():
            return [self.network(torch.from_numpy(np.ascontiguousarray(inputs["image"]))).numpy()]


INTENSITIES = {"percentile_00_5": -1.5, "percentile_99_5": 1.0, "mean": 0.1, "std": 0.7}
CLASSES = labels_of({"background": 0, "one": 3, "two": 5, "three": 9})
REGIONS = labels_of({"background": 0, "whole": [1, 2, 4], "core": [2, 4], "dot": 4, "ignore": 9}, [1, 2, 4])


def model_of(labels, n_folds=1, forward=(0, 1, 2), **changes):
    """A configuration whose networks have random weights."""
    patch = changes.pop("patch_size", [8, 8, 8])
    schemes = changes.setdefault("normalisation", ["zscore"])
    changes.setdefault("use_mask_for_norm", [False] * len(schemes))
    configuration = planned(patch, kernel_sizes=[[3] * len(patch)] * 2, strides=[[1] * len(patch), [2] * len(patch)],
                            features_per_stage=[4, 8], n_conv_per_stage=[1, 1], n_conv_per_stage_decoder=[1],
                            **changes)  # fmt: skip
    n_channels = n_inputs(len(schemes), labels, configuration)
    torch.manual_seed(n_folds)
    networks = [create(n_channels, len(labels.heads), configuration, None).eval() for _ in range(n_folds)]
    for network in networks:
        head = network.decoder.seg_layers[-1]
        head.bias.data[:] = 0
        head.weight.data -= head.weight.data.mean(1, keepdim=True)  # or one class would be found everywhere
    plan = {
        "transpose_forward": list(forward),
        "transpose_backward": np.argsort(forward).tolist(),
        "intensities": {str(index): INTENSITIES for index in range(len(schemes))},
    }
    content = {
        "plan": plan,
        "dataset": {"dataset": "Dataset001_Test", "orientation": "as-stored", "file_ending": ".nii.gz"},
        "channel_names": [f"channel {index}" for index in range(len(schemes))],
        "settings": {},
    }
    return Model(networks, labels, configuration, None, torch.device("cpu"), torch.float32, content)


VARIANTS = {
    "classes with gaps, folds, other axes, ct": (
        {"a": model_of(CLASSES, 2, (2, 0, 1), normalisation=["ct", "zscore"], spacing_mm=[0.9, 2.0, 1.0])},
        ("a",),
        (1.5, 1.2, 1.0),
        (11, 17, 20),
    ),
    "a coarse axis": (
        {"a": model_of(CLASSES, normalisation=["zscore"], use_mask_for_norm=[True], spacing_mm=[5.0, 1.0, 1.1])},
        ("a",),
        (6.0, 1.3, 1.0),
        (7, 20, 24),
    ),
    "an axis that is coarse in the file alone": (
        {"a": model_of(CLASSES, normalisation=["rescale_to_0_1", "none"], spacing_mm=[1.5, 1.0, 1.1])},
        ("a",),
        (6.0, 1.3, 1.0),
        (5, 16, 18),
    ),
    "a cascade beside 2d, regions, smaller than a patch": (
        {
            "low": model_of(REGIONS, spacing_mm=[3.0, 2.5, 2.5]),
            "high": model_of(
                REGIONS,
                previous_stage="low",
                use_mask_for_norm=[True],
                spacing_mm=[2.0, 0.8, 1.0],
                patch_size=[16, 16, 8],
            ),
            "flat": model_of(REGIONS, patch_size=[16, 16], spacing_mm=[1.0, 1.1]),
        },
        ("high", "flat"),
        (2.5, 1.2, 1.0),
        (9, 17, 22),
    ),
}


def case_of(shape, n_channels):
    """Smooth noise in zeros: a border to crop, a corner that stays outside of masks, and a hole that does not."""
    rng = np.random.default_rng(1)
    coarse = rng.normal(size=(n_channels, *(-(-n // 3) for n in shape)))
    array = np.kron(coarse, np.ones((1, 3, 3, 3)))[:, : shape[0], : shape[1], : shape[2]]
    array = (array + 0.2 * rng.normal(size=array.shape)).astype(np.float32)
    array[:, :, :2] = array[:, :, :, -3:] = array[:, :1] = 0
    array[:, :4, :8, :9] = 0
    array[:, 3:5, 9:12, 11:14] = 0
    return array


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_description_holds_every_rule(variant, example, monkeypatch, tmp_path):
    configurations, counted, spacing_mm, shape = VARIANTS[variant]
    ensemble = Ensemble(configurations, counted, dict.fromkeys(counted, 1 / len(counted)))
    array = case_of(shape, len(ensemble.content["channel_names"]))
    case = Case(ensemble, Volume(array, spacing_mm, np.eye(4)))
    expected = predict_case(ensemble, case, PRESETS["accurate"], Asked(), tmp_path).segmentation
    networks = {f"{name}/{index}": network for name, model in configurations.items()
                for index, network in enumerate(model.networks)}  # fmt: skip
    written = {name: [Written("0", f"{name}/{index}", "", 0.0, 1.0) for index, _ in enumerate(model.networks)]
               for name, model in configurations.items()}  # fmt: skip
    rules = json.loads(json.dumps(onnx_description.of(ensemble, written, "final", exported.TOLERANCE), allow_nan=False))
    opened = lambda path: Session(networks[str(path.relative_to(tmp_path))])  # noqa: E731
    monkeypatch.setattr(example.onnxruntime, "InferenceSession", opened)
    found = example.segment(tmp_path, array, list(spacing_mm), rules)
    assert np.bincount(expected.ravel()).min() > 50
    assert (found == expected).mean() >= 0.9999
    written_values = np.array(rules["labels"]["values_in_files"])[found]
    assert np.array_equal(written_values, ensemble.labels.to_files(found))


@pytest.mark.parametrize("orientation", ["as-stored", "RAS"])
def test_the_script_reads_and_writes_as_segpipe_does(orientation, example, tmp_path):
    rng = np.random.default_rng(0)
    affine = np.array([[0, -1.5, 0.1, 3], [0.1, 0, -2.5, 5], [-0.8, 0, 0, 7], [0, 0, 0, 1.0]])
    stored = nibabel.Nifti1Image(rng.normal(size=(5, 6, 7)).astype(np.float32), affine)
    nibabel.save(stored, tmp_path / "image.nii.gz")
    rules = {
        "image": {"orientation": orientation, "slice_thickness_2d": 999.0},
        "labels": {"values_in_files": [0, 3, 300]},
    }
    array, spacing, like = example.read([tmp_path / "image.nii.gz"], rules["image"])
    expected = image.read_image(tmp_path / "image.nii.gz", orientation)
    assert np.array_equal(array, expected.array)
    assert np.allclose(spacing, expected.spacing_mm)
    label_map = rng.integers(0, 3, array.shape[1:]).astype(np.int16)
    example.write(tmp_path / "found.nii.gz", label_map, like, rules)
    in_files = np.array([0, 3, 300])[label_map]
    image.write_label_like(tmp_path / "expected.nii.gz", in_files, tmp_path / "image.nii.gz", orientation)
    assert np.array_equal(voxels(tmp_path / "found.nii.gz"), voxels(tmp_path / "expected.nii.gz"))
    assert np.allclose(nibabel.load(tmp_path / "found.nii.gz").affine, affine)


def test_a_photograph_has_one_slice_and_no_coarse_axis(example, tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.ones((5, 6), np.float32), np.eye(4)), tmp_path / "flat.nii.gz")
    rules = {"image": {"orientation": "RAS", "slice_thickness_2d": 999.0}, "labels": {"values_in_files": [0, 1]}}
    array, spacing, like = example.read([tmp_path / "flat.nii.gz"], rules["image"])
    expected = image.read_image(tmp_path / "flat.nii.gz", "RAS")
    assert (array.shape, tuple(spacing)) == (expected.array.shape, expected.spacing_mm)
    example.write(tmp_path / "out.nii.gz", np.ones((1, 6, 5), np.int16), like, rules)
    assert voxels(tmp_path / "out.nii.gz").shape == (5, 6)


# ---- networks of one's own, refusals ---------------------------------------------------------------------------------


OWN = """
import torch
from torch import nn

class Fine(nn.Module):
    def __init__(self, n_channels, n_classes, plan):
        super().__init__()
        self.first = nn.Conv2d(n_channels, 4, 3, padding=1)
        self.last = nn.Linear(4, n_classes)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)).movedim(1, -1)).movedim(-1, 1)

class Counting(Fine):
    def forward(self, x):
        return torch.cat([super(Counting, self).forward(x[i : i + 1]) for i in range(len(x))])

class Branching(Fine):
    def forward(self, x):
        return super().forward(x) if float(x.mean()) > 0 else super().forward(-x)
"""


def own(flat, folder, name, monkeypatch):
    """A MODEL whose network is a class of OWN."""
    (folder / "own.py").write_text(OWN)
    monkeypatch.chdir(folder)
    content = checkpoint.load(models.find(flat, "final")["2d"]["0"])
    content["settings"]["network"] = f"own:{name}"
    plan = content["plan"]["configurations"]["2d"]
    torch.manual_seed(0)
    content["network"] = create(2, 3, planned(plan["patch_size"]), f"own:{name}").state_dict()
    checkpoint.save(folder / "model/2d/fold_0/checkpoint_final.pth", content)
    return folder / "model"


def refused(capsys, *call):
    """What a refused call says."""
    with pytest.raises(SystemExit) as ended:
        segpipe("export-onnx", *call)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_network_of_ones_own_is_exported(flat, tmp_path, monkeypatch):
    segpipe("export-onnx", own(flat, tmp_path, "Fine", monkeypatch), "--out", tmp_path / "out")
    assert (tmp_path / "out/2d/fold_0.onnx").is_file()


@pytest.mark.parametrize("name", ["Branching", "Counting"])
def test_a_network_that_onnx_cannot_express_is_one_error(name, flat, tmp_path, monkeypatch, capsys):
    """Neither one that decides by values nor one for a single size of batch."""
    said = refused(capsys, own(flat, tmp_path, name, monkeypatch), "--out", tmp_path / "new/out")
    assert "a network that cannot be written as ONNX\n  where:    2d, fold 0" in said
    assert len(said.splitlines()) == 6
    assert "Traceback" not in said
    assert not [*(tmp_path / "new").iterdir()]


def test_other_logits_than_those_of_torch_are_refused(flat, of_flat, tmp_path, monkeypatch, capsys):
    """The file is that of the other fold."""
    other = (of_flat / "2d/fold_1.onnx").read_bytes()
    monkeypatch.setattr(exported, "_write", lambda network, patches, path, where: path.write_bytes(other))
    said = refused(capsys, flat, "--out", tmp_path / "new/out", "--folds", "0")
    assert "onnxruntime finds other logits than torch" in said
    assert "at most 0.001 of the largest logit" in said
    assert not [*(tmp_path / "new").iterdir()]


def test_a_file_that_onnxruntime_cannot_run_is_refused(flat, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exported, "_write", lambda network, patches, path, where: path.write_bytes(b"no graph"))
    said = refused(capsys, flat, "--out", tmp_path / "new/out")
    assert "onnxruntime cannot run the network\n  where:    2d, fold 0" in said
    assert not [*(tmp_path / "new").iterdir()]


def test_not_a_number_is_no_agreement():
    with pytest.raises(SegpipeError, match="other logits"):
        exported._require_equal(exported._Compared(float("nan"), 1.0), "2d, fold 0")


def test_an_old_folder_is_left_alone(flat, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert "the folder exists" in refused(capsys, flat, "--out", tmp_path / "out")
    assert not [*(tmp_path / "out").iterdir()]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--configurations", "3d_fullres"], "no such configuration"),
        (["--folds", "7"], "no such fold"),
        (["--checkpoint", "best"], "no model"),
        (["--weights", "averaged"], "averaged"),
    ],
)
def test_what_the_model_has_not_is_refused(asked, said, flat, tmp_path, capsys):
    assert said in refused(capsys, flat, "--out", tmp_path / "new/out", *asked)
    assert not (tmp_path / "new").exists()


def test_absent_packages_are_named(flat, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exported, "PACKAGES", ("onnx", "onnx_that_is_absent"))
    said = refused(capsys, flat, "--out", tmp_path / "out")
    assert "found:    no module onnx_that_is_absent\n" in said
    assert "pip install 'segpipe[onnx]'" in said
