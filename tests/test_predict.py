"""Loading models and predicting imagesTs."""

import shutil
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from predicted import on_file_grid, whole_logits
from tiny import FOUR, params, planned

from segpipe import digest
from segpipe.data import image
from segpipe.data.cases import Cases
from segpipe.errors import SegpipeError
from segpipe.inference import predict
from segpipe.inference.predict_dataset import predict_dataset
from segpipe.prepare.preprocess import preprocess
from segpipe.training import checkpoint
from segpipe.training.network import PlainConvUNet, build

pytest_plugins = ["phantom_fixtures"]

CPU = torch.device("cpu")


def models_of(trained):
    return [trained / f"fold_{fold}/checkpoint_final.pth" for fold in (0, 1)]


def changed(source, target, **changes):
    checkpoint.save(target, {**checkpoint.load(source), **changes})
    return target


# ---- models ----------------------------------------------------------------------------------------------------------


def test_a_model_holds_one_network_per_fold_ready_to_predict(trained):
    model = predict.load(models_of(trained), CPU, "raw")
    assert model.dtype == torch.float32
    assert model.planned.patch_size == [16, 16, 16]
    for network, path in zip(model.networks, models_of(trained), strict=True):
        assert not network.training
        stored = checkpoint.load(path)["network"]
        assert all(torch.equal(value, stored[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("deterministic", [True, False])
def test_cudnn_looks_for_its_fastest_algorithms_unless_the_training_was_deterministic(
    trained, monkeypatch, deterministic
):
    model = predict.load(models_of(trained), CPU, "raw")
    model.content["settings"]["deterministic"] = deterministic
    noted = []
    monkeypatch.setattr(predict, "seen", lambda *_: noted.append(torch.backends.cudnn.benchmark))
    monkeypatch.setattr(predict, "export", lambda *_: noted.append(torch.backends.cudnn.benchmark))
    for before in (False, True):  # what a training in this process has set
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
        predict.run(model, SimpleNamespace(grid=None), params().validate_, [])
        assert noted == [before or not deterministic] * 2
        assert torch.backends.cudnn.benchmark == before
        noted.clear()


def test_a_network_in_training_is_executed_as_the_training_wants(monkeypatch):
    model = predict.Model([], FOUR, planned([8, 8, 8]), None, CPU, torch.float32)
    assert not model.may_tune


def test_folds_of_different_trainings_are_refused(trained, tmp_path):
    first, second = models_of(trained)
    other = changed(second, tmp_path / "other.pth", settings_digest="0123456789abcdef")
    with pytest.raises(SegpipeError, match=r"different settings.*\n.*other\.pth\n.*0123456789abcdef"):
        predict.load([first, other], CPU, "raw")


@pytest.mark.parametrize(
    ("patch", "trained_axes", "axes"),
    [
        ([8, 8, 8], None, [0, 1, 2]),
        ([8, 8, 8], [0, 2], [0, 2]),
        ([8, 8, 8], [], []),
        ([8, 8], None, [0, 1]),
        ([8, 8], [1, 2], [0, 1]),
        ([8, 8], [0, 2], [1]),
    ],
)
def test_mirror_axes_are_those_of_the_training(patch, trained_axes, axes):
    model = predict.Model([], FOUR, planned(patch), trained_axes, CPU, torch.float32)
    assert model.mirror_axes(True) == tuple(axes)
    assert model.mirror_axes(False) == ()


@pytest.mark.parametrize(("trained_with", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_that_of_the_training(trained, tmp_path, trained_with, dtype):
    source = models_of(trained)[0]
    settings = {**checkpoint.load(source)["settings"], "precision": trained_with}
    assert predict.load([changed(source, tmp_path / "model.pth", settings=settings)], CPU, "raw").dtype == dtype


def test_a_model_trained_with_fp16_predicts_without_cuda(trained, tmp_path):
    source = models_of(trained)[0]
    settings = {**checkpoint.load(source)["settings"], "precision": "fp16"}
    model = predict.load([changed(source, tmp_path / "model.pth", settings=settings)], CPU, "raw")
    assert model.dtype == torch.float32


def both_weights(trained, target, fold=0):
    """A checkpoint whose averaged weights are those of the other fold."""
    paths = models_of(trained)
    return changed(paths[fold], target, averaged=checkpoint.load(paths[1 - fold])["network"])


def test_weights_are_raw_or_averaged(trained, tmp_path):
    path = both_weights(trained, tmp_path / "both.pth")
    for weights, source in zip(("raw", "averaged"), models_of(trained), strict=True):
        (network,) = predict.load([path], CPU, weights).networks
        expected = checkpoint.load(source)["network"]
        assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())


def test_averaged_weights_that_one_member_lacks_are_refused(trained, tmp_path):
    first = both_weights(trained, tmp_path / "both.pth")
    with pytest.raises(SegpipeError, match=r"(?s)no averaged weights.*fold_1.checkpoint_final\.pth.*ema\.decay: null"):
        predict.load([first, models_of(trained)[1]], CPU, "averaged")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(SegpipeError, match=r"(?s)no such checkpoint.*nowhere\.pth"):
        predict.load([tmp_path / "nowhere.pth"], CPU, "raw")


def test_a_model_remembers_what_it_was_made_of(trained, tmp_path):
    """The plain data of the first checkpoint, and every file by its content."""
    state = changed(models_of(trained)[0], tmp_path / "latest.pth", resume={"optimiser": torch.zeros(9)})
    model = predict.load([state, models_of(trained)[1]], CPU, "raw")
    assert model.files == [digest.of_file(path) for path in (state, models_of(trained)[1])]
    assert model.content["facts"] == checkpoint.load(state)["facts"]
    assert not {"network", "averaged", "resume"} & set(model.content)


def test_a_custom_network_is_made_by_its_import_path(trained, tmp_path, monkeypatch):
    source = "from segpipe.training.network import PlainConvUNet\n\n\nclass Mine(PlainConvUNet):\n    pass\n"
    (tmp_path / "own_network.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    settings = {**checkpoint.load(models_of(trained)[0])["settings"], "network": "own_network:Mine"}
    path = changed(models_of(trained)[0], tmp_path / "model.pth", settings=settings)
    assert type(predict.load([path], CPU, "raw").networks[0]).__name__ == "Mine"


# ---- imagesTs --------------------------------------------------------------------------------------------------------


def logits_of(paths, prepared_case, settings, mirror):
    content = [checkpoint.load(path) for path in paths]
    networks = []
    for one in content:
        plan = one["plan"]["configurations"][one["configuration"]]
        network = PlainConvUNet(1, 4, planned(**plan)).eval()
        network.load_state_dict(one["network"])
        networks.append(network)
    array = torch.from_numpy(prepared_case.image)
    return whole_logits(networks, array, plan["patch_size"], mirror, settings.step_size, torch.float32).numpy()


@pytest.fixture(scope="module")
def flat(prepared, trained, tmp_path_factory):
    """A 2d model for the same cases, untrained: a second configuration."""
    plan = planned([16, 16], spacing_mm=[3.0, 3.0])
    content = checkpoint.load(models_of(trained)[0])
    return changed(
        models_of(trained)[0],
        tmp_path_factory.mktemp("flat") / "checkpoint_final.pth",
        configuration="2d",
        settings_digest="another",
        plan={**content["plan"], "configurations": {"2d": asdict(plan)}},
        network=build(1, 4, plan, params().train).state_dict(),
    )


def test_logits_are_averaged_over_folds_and_softmax_over_configurations(prepared, trained, flat, tmp_path):
    cases, settings = prepared.cases, params(validate__mirroring=True)
    paths = [*models_of(trained), flat]
    predict_dataset(cases, paths, ["3d_fullres", "2d"], tmp_path / "predictions", settings)
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == [
        ".made_of.json",
        "labels.json",
        *(f"{case}.nii.gz" for case in cases.test),
    ]
    assert len(cases.test) == 2
    for case in cases.test:
        volume, total = cases.read_image(case), 0
        for group, mirror in ((models_of(trained), (0, 1, 2)), ([flat], (0, 1))):
            model = predict.load(group, CPU, "raw")
            one = preprocess(volume.array, None, volume.spacing_mm, model.content["plan"], model.planned)
            total = total + on_file_grid(logits_of(group, one, settings.validate_, mirror), one.grid, cases.labels)
        top = np.sort(total, 0)
        clear = top[-1] - top[-2] > 1e-4
        result = image.read_label(tmp_path / f"predictions/{case}.nii.gz").array[0]
        assert clear.mean() > 0.99
        assert np.array_equal(result[clear], total.argmax(0)[clear])


def interrupted_prediction(prepared, models, out, monkeypatch):
    """Predict the first of two cases, then stop; returns the list of what is predicted from now on."""
    predicted, original = [], predict.run

    def counting(model, one, *rest, **named):
        if stop and predicted:
            raise KeyboardInterrupt
        predicted.append(one.grid.shape)
        return original(model, one, *rest, **named)

    monkeypatch.setattr(predict, "run", counting)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        predict_dataset(prepared.cases, models, ["3d_fullres"], out, params())
    assert not out.exists()
    stop = False
    predicted.clear()
    return predicted


def test_an_interrupted_prediction_goes_on_where_it_stopped(prepared, trained, tmp_path, monkeypatch):
    out = tmp_path / "out/predictions"
    predicted = interrupted_prediction(prepared, models_of(trained), out, monkeypatch)
    predict_dataset(prepared.cases, models_of(trained), ["3d_fullres"], out, params())
    assert len(predicted) == 1
    predict_dataset(prepared.cases, models_of(trained), ["3d_fullres"], tmp_path / "whole/predictions", params())
    files = [
        {path.name: path.read_bytes() for path in folder.iterdir()} for folder in (out, tmp_path / "whole/predictions")
    ]
    assert files[0] == files[1]
    assert len(files[0]) == 4


@pytest.mark.parametrize("changes", [{"validate__step_size": 0.5}, {"validate__mirroring": True}, {}])
def test_cases_done_with_other_models_or_in_another_way_are_not_taken_over(
    prepared, trained, tmp_path, monkeypatch, changes
):
    out = tmp_path / "out/predictions"
    predicted = interrupted_prediction(prepared, models_of(trained), out, monkeypatch)
    models = models_of(trained) if changes else models_of(trained)[:1]
    predict_dataset(prepared.cases, models, ["3d_fullres"], out, params(**changes))
    assert len(predicted) == 2
    assert len(list((tmp_path / "out/state/predictions").glob("*/"))) == 1  # nothing of other ways is left behind


def test_averaged_weights_predict_where_the_settings_say_so(prepared, trained, tmp_path, monkeypatch):
    """And take over no case that the raw ones predicted."""
    both = [both_weights(trained, tmp_path / f"fold_{fold}.pth", fold) for fold in (0, 1)]
    averaged = params(validate__weights="averaged", train__ema={"decay": 0.9, "ramp_steps": 0})
    out = tmp_path / "out/predictions"
    predicted = interrupted_prediction(prepared, both[:1], out, monkeypatch)
    predict_dataset(prepared.cases, both[:1], ["3d_fullres"], out, averaged)
    assert len(predicted) == 2
    for name, models in (("raw", both[:1]), ("expected", models_of(trained)[1:])):
        predict_dataset(prepared.cases, models, ["3d_fullres"], tmp_path / name / "predictions", params())
    files = {name: files_of(tmp_path / name / "predictions") for name in ("out", "raw", "expected")}
    assert files["out"] == files["expected"] != files["raw"]


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.nii.gz")}


def test_an_image_that_changed_is_predicted_again(prepared, trained, tmp_path, monkeypatch):
    """The case that was done before the interruption is replaced by another image."""
    cases, out = prepared.cases, tmp_path / "out/predictions"
    predicted, write = [], image.write_label_like
    monkeypatch.setattr(
        image, "write_label_like", lambda path, *rest: predicted.append(path.name) or write(path, *rest)
    )
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(digest, "new_folder", interrupted)
        predict_dataset(cases, models_of(trained), ["3d_fullres"], out, params())
    first = cases.test[0]
    monkeypatch.setattr(type(cases), "identity", lambda self, case: "new" if case == first else IDENTITY(self, case))
    predict_dataset(cases, models_of(trained), ["3d_fullres"], out, params())
    assert predicted == [f"{case}.nii.gz" for case in [*cases.test, first]]


def test_a_finished_prediction_is_not_done_again(prepared, trained, tmp_path, monkeypatch):
    """A job that waited for another one with the same work finds it done; anything else does it."""
    out = tmp_path / "out/predictions"
    predicted, original = [], predict.run
    monkeypatch.setattr(predict, "run", lambda *rest, **named: predicted.append(1) or original(*rest, **named))

    def again(**changes):
        predicted.clear()
        predict_dataset(prepared.cases, models_of(trained), ["3d_fullres"], out, params(**changes))
        return len(predicted)

    assert [again(), again()] == [2, 0]
    shutil.rmtree(out)  # as Snakemake does before it runs the job again
    assert again() == 0
    assert sorted(path.name for path in out.glob("*.nii.gz")) == [f"{case}.nii.gz" for case in prepared.cases.test]
    assert [again(validate__step_size=0.5), again()] == [2, 2]
    (out / f"{prepared.cases.test[0]}.nii.gz").write_bytes(b"edited, and so is its other name")
    (out / f"{prepared.cases.test[1]}.nii.gz").unlink()
    assert again() == 1


def interrupted(*_):
    raise KeyboardInterrupt


IDENTITY = Cases.identity
