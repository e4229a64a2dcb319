"""Models and probabilities as nnU-Net reads them."""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from interop import IMAGES, INTEROP, imported, segpipe
from tiny import FOUR

from segpipe.errors import SegpipeError
from segpipe.inference.models import find
from segpipe.interop.nnunet_export import dataset_json, export_model, folder_name
from segpipe.interop.nnunet_predictions import export_predictions
from segpipe.training import checkpoint

CASE = "case_004"


@pytest.fixture(scope="module")
def round_trip(tmp_path_factory):
    """nnU-Net's folders, and the same models imported and exported again."""
    folder = tmp_path_factory.mktemp("round_trip")
    for kind in ("regions", "resenc"):
        zipfile.ZipFile(INTEROP / f"{kind}.zip").extractall(folder / "theirs" / kind)
        segpipe("export-nnunet", imported(kind, folder), "--out", folder / "ours" / kind)
    return folder


def pairs(folder, name):
    """A file of every model, theirs and ours."""
    files = sorted((folder / "theirs").rglob(name))
    for theirs in files:
        kind, _, model, *rest = theirs.relative_to(folder / "theirs").parts
        yield theirs, folder / "ours" / kind / folder_name(model.split("__")[-1]) / Path(*rest)


def test_checkpoints_have_every_key_of_nnunet(round_trip):
    """All names under which nnU-Net's network, loaded strictly, expects its tensors."""
    compared = 0
    for theirs, ours in pairs(round_trip, "checkpoint_final.pth"):
        expected, found = torch.load(theirs, weights_only=False), torch.load(ours, weights_only=True)
        assert found["network_weights"].keys() == expected["network_weights"].keys()
        for name, tensor in expected["network_weights"].items():
            assert torch.equal(found["network_weights"][name], tensor)
        keys = ("trainer_name", "inference_allowed_mirroring_axes")
        assert {key: found[key] for key in keys} == {key: expected[key] for key in keys}
        assert found["init_args"]["configuration"] == expected["init_args"]["configuration"]
        compared += 1
    assert compared == 4


def test_plans_and_dataset_say_what_nnunet_said(round_trip):
    for theirs, ours in pairs(round_trip, "dataset.json"):
        expected, found = json.loads(theirs.read_text()), json.loads(ours.read_text())
        classes = [list(content.pop("labels").items()) for content in (expected, found)]
        assert classes[1] == [(name, value[0] if value == [2] else value) for name, value in classes[0]]
        assert {**found, "numTraining": 4} == expected
        name = ours.parent.name.split("__")[-1]
        plans = [json.loads((path.parent / "plans.json").read_text()) for path in (theirs, ours)]
        fullres = plans[0]["configurations"].get("3d_fullres", {})
        planned = {**(fullres if "cascade" in name else {}), **plans[0]["configurations"][name]}
        written = plans[1]["configurations"][name]
        for key in ("patch_size", "spacing", "normalization_schemes", "use_mask_for_norm"):
            assert written[key] == planned[key]
        assert written["architecture"]["arch_kwargs"] == planned["architecture"]["arch_kwargs"]
        assert written.get("previous_stage") == planned.get("previous_stage")
        assert plans[1]["transpose_forward"] == plans[0]["transpose_forward"]
        assert (
            plans[1]["foreground_intensity_properties_per_channel"]
            == (plans[0]["foreground_intensity_properties_per_channel"])
        )


def test_a_network_of_ones_own_is_refused(round_trip, tmp_path):
    found = find(round_trip / "resenc", "final")
    content = checkpoint.load(found["2d"]["0"])
    content["settings"]["network"] = "mine:Network"
    checkpoint.save(tmp_path / "model/2d/fold_0/checkpoint_final.pth", content)
    with pytest.raises(SegpipeError, match=r"(?s)network of your own.*mine:Network"):
        export_model(tmp_path / "model", tmp_path / "out", "final", "raw")
    assert not (tmp_path / "out").exists()


def test_labels_with_gaps_are_counted_without(caplog):
    labels = {**FOUR.to_json(), "file_values": [0, 3, 5, 9]}
    content = {"labels": labels, "channel_names": ["T1"], "dataset": {"file_ending": ".png"}}
    assert sorted(dataset_json(content)["labels"].values()) == [0, 1, 2, 3]
    assert "2 is 5" in caplog.text


# ---- probabilities ---------------------------------------------------------------------------------------------------


def test_probabilities_lie_beside_what_the_ensemble_command_wants(round_trip, tmp_path):
    np.savez(tmp_path / f"{CASE}.npz", probabilities=np.load(INTEROP / "resenc.npz")["probabilities"])
    export_predictions(tmp_path, IMAGES, round_trip / "resenc", "final", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"{CASE}.npz", f"{CASE}.pkl", "plans.json", "dataset.json"}
    noted = pickle.loads((tmp_path / f"out/{CASE}.pkl").read_bytes())
    SimpleITK = pytest.importorskip("SimpleITK")
    read = SimpleITK.ReadImage(str(IMAGES / f"{CASE}_0000.nii.gz"))
    assert np.allclose(noted["sitk_stuff"]["spacing"], read.GetSpacing())
    assert np.allclose(noted["sitk_stuff"]["origin"], read.GetOrigin(), atol=1e-4)
    assert np.allclose(noted["sitk_stuff"]["direction"], read.GetDirection(), atol=1e-6)
    assert np.allclose(noted["spacing"], read.GetSpacing()[::-1])


def test_probabilities_of_other_images_are_refused_together(round_trip, tmp_path):
    np.savez(tmp_path / f"{CASE}.npz", probabilities=np.zeros((3, 4, 5, 6)))
    np.savez(tmp_path / "unknown.npz", probabilities=np.zeros((3, 4, 5, 6)))
    with pytest.raises(SegpipeError, match=r"(?s)2 problems.*another grid.*no image of a case.*unknown"):
        export_predictions(tmp_path, IMAGES, round_trip / "resenc", "final", tmp_path / "out")
    assert not (tmp_path / "out").exists()
