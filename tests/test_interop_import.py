"""Models of nnU-Net: imported, they predict what nnU-Net predicts."""

import json
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch
from interop import IMAGES, INTEROP, imported, of_nnunet, segpipe

from segpipe import digest
from segpipe.data import image
from segpipe.errors import SegpipeError
from segpipe.interop.nnunet_import import import_model
from segpipe.training import checkpoint

CASE = "case_004"
REGIONS = "Dataset099_Tiny/nnUNetTrainer__nnUNetPlans__3d_lowres"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {kind: imported(kind, folder) for kind in ("regions", "resenc")}


@pytest.fixture
def unpacked(tmp_path):
    """The regions' zip file as a folder that may be changed."""
    zipfile.ZipFile(INTEROP / "regions.zip").extractall(tmp_path / "nnunet")
    return tmp_path / "nnunet"


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_checkpoint(path, change):
    content = torch.load(path, weights_only=False)
    change(content)
    torch.save(content, path)


# ---- agreement -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "options"), [("regions", []), ("resenc", ["--no-mirroring"])])
def test_probabilities_and_segmentation_are_those_of_nnunet(models, tmp_path, kind, options):
    """A cascade of regions with mirroring; a 2d residual network, mean of two folds, without."""
    arguments = ["--model", models[kind], "-i", IMAGES, "-o", tmp_path, "--probabilities", "--device", "cpu"]
    segpipe("predict", *arguments, *options)
    expected = of_nnunet(kind)
    found = np.load(tmp_path / f"{CASE}.npz")["probabilities"]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-3  # the stored ones are float16
    segmented = image.read_label(tmp_path / f"{CASE}.nii.gz").array[0]
    painted = np.where(expected[1] > 0.5, 2, expected[0] > 0.5) if kind == "regions" else expected.argmax(0)
    assert (segmented == painted).mean() > 0.9999
    assert len(np.unique(segmented)) == 3


def test_a_cascade_sees_what_its_first_stage_segmented(models, tmp_path):
    """With the first stage's head turned around another segmentation comes out: it is no idle input."""
    shutil.copytree(models["regions"], tmp_path / "model")
    path = tmp_path / "model/3d_lowres/fold_0/checkpoint_final.pth"
    content = checkpoint.load(path)
    head = [name for name in content["network"] if "seg_layers" in name][-2:]
    content["network"].update({name: -content["network"][name] for name in head})
    checkpoint.save(path, content)
    arguments = ["-i", IMAGES, "-o", tmp_path, "--no-mirroring", "--probabilities", "--device", "cpu"]
    segpipe("predict", "--model", tmp_path / "model", *arguments)
    assert np.abs(np.load(tmp_path / f"{CASE}.npz")["probabilities"] - of_nnunet("regions")).max() > 0.1


# ---- what a MODEL says -----------------------------------------------------------------------------------------------


def test_a_model_says_where_it_is_from(models):
    content = digest.read_json(models["regions"] / "model.json")
    assert content["from"] == "nnU-Net"
    assert content["configurations"]["3d_cascade_fullres"] == {
        "folder": "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres",
        "trainer": "nnUNetTrainer",
        "previous_stage": "3d_lowres",
        "checkpoints": ["fold_0/checkpoint_final.pth"],
    }
    stored = checkpoint.load(models["regions"] / "3d_lowres/fold_0/checkpoint_final.pth")
    assert stored["channel_names"] == ["CT", "MRI"]
    assert stored["dataset"] == {
        "dataset": "Dataset099_Tiny",
        "file_ending": ".nii.gz",
        "orientation": "as-stored",
    }
    assert stored["labels"]["regions_order"] == [1, 2]
    assert stored["mirror_axes"] == [0, 1, 2]


@pytest.mark.parametrize(("allowed", "axes"), [((0,), [1]), (None, []), ((), [])])
def test_mirror_axes_are_counted_in_the_case(tmp_path, allowed, axes):
    zipfile.ZipFile(INTEROP / "resenc.zip").extractall(tmp_path)
    (folder,) = tmp_path.glob("*/*")
    for path in folder.glob("fold_*/*.pth"):
        edit_checkpoint(path, lambda content: content.update(inference_allowed_mirroring_axes=allowed))
    import_model(folder, tmp_path / "model")
    assert checkpoint.load(tmp_path / "model/2d/fold_0/checkpoint_final.pth")["mirror_axes"] == axes


def test_prefixes_of_wrappers_are_taken_off(unpacked, models, tmp_path):
    for path in unpacked.rglob("*.pth"):
        edit_checkpoint(
            path,
            lambda content: content.update(
                network_weights={f"_orig_mod.{name}": tensor for name, tensor in content["network_weights"].items()}
            ),
        )
    import_model(unpacked, tmp_path / "model")
    name = "3d_lowres/fold_0/checkpoint_final.pth"
    pair = [checkpoint.load(folder / name)["network"] for folder in (tmp_path / "model", models["regions"])]
    assert pair[0].keys() == pair[1].keys()
    assert all(torch.equal(pair[0][key], pair[1][key]) for key in pair[0])


def test_images_turned_to_ras_by_nnunet_are_turned_here(unpacked, tmp_path):
    for path in unpacked.rglob("plans.json"):
        edit_json(path, lambda content: content.update(image_reader_writer="NibabelIOWithReorient"))
    import_model(unpacked, tmp_path / "model")
    stored = checkpoint.load(tmp_path / "model/3d_lowres/fold_0/checkpoint_final.pth")
    assert stored["dataset"]["orientation"] == "RAS"


# ---- what is refused -------------------------------------------------------------------------------------------------


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def refused(source, out, match):
    with pytest.raises(SegpipeError, match=match):
        import_model(source, out / "model")
    assert not (out / "model").exists()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_nothing_is_executed(unpacked, tmp_path):
    path = unpacked / REGIONS / "fold_0/checkpoint_final.pth"
    edit_checkpoint(path, lambda content: content.update(logging=Harmful(str(tmp_path / "ran"))))
    refused(unpacked, tmp_path, r"(?s)cannot be read.*checkpoint_final\.pth.*open, which could run code")
    assert not (tmp_path / "ran").exists()
    path.write_bytes(pickle.dumps(Harmful(str(tmp_path / "ran"))))
    refused(unpacked, tmp_path, r"(?s)cannot be read")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["../outside/plans.json", "/outside/plans.json", "a/../../plans.json", "..\\plans.json"]
)
def test_a_zip_file_that_reaches_outside_is_refused(tmp_path, name):
    folder = tmp_path / "one/two"
    folder.mkdir(parents=True)
    shutil.copy(INTEROP / "regions.zip", folder / "model.zip")
    with zipfile.ZipFile(folder / "model.zip", "a") as archive:
        archive.writestr(name, "{}")
    refused(folder / "model.zip", folder, "outside of it")
    assert not list(tmp_path.rglob("plans.json"))


def test_a_truncated_zip_file_is_refused(tmp_path):
    whole = (INTEROP / "regions.zip").read_bytes()
    (tmp_path / "bad.zip").write_bytes(whole[:5000] + bytes(300) + whole[5300:])
    refused(tmp_path / "bad.zip", tmp_path, "zip file cannot be read")
    (tmp_path / "bad.zip").write_bytes(whole[:5000])
    refused(tmp_path / "bad.zip", tmp_path, "no model of nnU-Net")


def test_a_cascade_without_its_first_stage_is_refused(unpacked, tmp_path):
    (folder,) = unpacked.glob("*/*cascade*")
    refused(folder, tmp_path, r"(?s)stage before a cascade is missing.*3d_lowres")


def test_a_missing_part_is_named(unpacked, tmp_path):
    (unpacked / REGIONS / "dataset.json").unlink()
    refused(unpacked, tmp_path, r"(?s)missing file.*3d_lowres.dataset\.json")


def without_axes(plans):
    plans["configurations"]["3d_lowres"]["spacing"] = None


def with_text(plans):
    plans["configurations"] = "3d_lowres"


@pytest.mark.parametrize("change", [without_axes, with_text])
def test_plans_that_a_hand_has_spoilt_are_refused_with_their_place(unpacked, tmp_path, change):
    edit_json(unpacked / REGIONS / "plans.json", change)
    refused(unpacked / REGIONS, tmp_path, "plans.json")


def test_a_folder_without_models_is_refused(tmp_path):
    (tmp_path / "nothing").mkdir()
    refused(tmp_path / "nothing", tmp_path, r"(?s)no model of nnU-Net.*an empty folder")


def test_two_models_of_one_configuration_are_refused(unpacked, tmp_path):
    shutil.copytree(unpacked / REGIONS, unpacked / f"{REGIONS}_again")
    refused(unpacked, tmp_path, r"(?s)two models of one configuration.*3d_lowres")


def batch_norm(content):
    content["network_weights"]["encoder.stages.0.0.convs.0.norm.running_mean"] = torch.zeros(4)


def fewer_heads(content):
    weights = content["network_weights"]
    for name in [name for name in weights if "seg_layers.0" in name]:
        weights[name] = weights[name][:1]


def lost(content):
    del content["network_weights"]["encoder.stages.0.0.convs.0.conv.bias"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (batch_norm, r"norm\.running_mean, which is not known"),
        (fewer_heads, r"seg_layers\.0\.weight of shape \(1, .*instead of \(2,"),
        (lost, r"no encoder\.stages\.0\.0\.convs\.0\.conv\.bias"),
    ],
)
def test_weights_of_another_network_are_refused(unpacked, tmp_path, change, match):
    edit_checkpoint(unpacked / REGIONS / "fold_0/checkpoint_final.pth", change)
    refused(unpacked, tmp_path, match)


def test_an_existing_folder_is_not_replaced(models):
    with pytest.raises(SegpipeError, match="the folder exists"):
        import_model(INTEROP / "regions.zip", models["regions"])
    assert (models["regions"] / "model.json").exists()
