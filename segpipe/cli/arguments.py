"""The arguments of every verb of `segpipe`: standard library only, so that help and a wrong call cost nothing.

One function per verb, which adds its arguments to an argparse parser.
"""

import argparse
from pathlib import Path

from segpipe.cli import argument_types as types


def init(parser: argparse.ArgumentParser) -> None:
    """`segpipe init FOLDER`."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the new experiment: experiments/NAME")
    parser.add_argument("--dataset", metavar="PATH", help="where its dataset lies, from here; default: as in --from")
    parser.add_argument(
        "--set",
        type=types.setting,
        action=types.Settings,
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="train.epochs=100 'configurations=[2d, 3d_fullres]': settings of its own; paths from here",
    )
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="PATH",
        help="params.yaml or experiment to start from; default: params.yaml, here or of segpipe",
    )


def compare(parser: argparse.ArgumentParser) -> None:
    """`segpipe compare PATH ...`."""
    parser.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="experiment, its results/, a validation folder, or a summary.json, of nnU-Net as well",
    )
    parser.add_argument("--reference", type=Path, metavar="PATH", help="what all are compared to; default: the first")
    parser.add_argument("--only-finished", action="store_true", help="leave out paths without results")
    parser.add_argument(
        "--out", type=types.table_file, metavar="FILE", help="FILE.csv, all numbers; or FILE.md, what is printed"
    )
    _add_params(parser)


def check(parser: argparse.ArgumentParser) -> None:
    """`segpipe check DATASET`."""
    parser.add_argument("dataset", type=Path, help="folder in nnU-Net raw layout, or a Decathlon task folder")
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="FOLDER", help="where check.html goes; default: here"
    )
    _add_params(parser)


def plan(parser: argparse.ArgumentParser) -> None:
    """`segpipe plan`."""
    parser.add_argument("--explain", action="store_true", help="print the reason for each decision")
    parser.add_argument(
        "--preprocessed",
        type=Path,
        metavar="FOLDER",
        help="with plan.json, or with cases.json and fingerprint.json; default: data/preprocessed/<dataset>",
    )
    _add_params(parser)


def import_msd(parser: argparse.ArgumentParser) -> None:
    """`segpipe import-msd TASK`."""
    parser.add_argument("task", type=Path, help="folder TaskNN_Name of the Decathlon, or its .tar")
    parser.add_argument(
        "--out", type=Path, default=Path("data/raw"), help="where DatasetNNN_Name goes; default: data/raw"
    )


def import_bids(parser: argparse.ArgumentParser) -> None:
    """`segpipe import-bids BIDS_ROOT --derivative NAME --suffix T1w --out DATASET`."""
    parser.add_argument("root", type=Path, metavar="BIDS_ROOT", help="folder with sub-*/ and derivatives/")
    parser.add_argument("--derivative", required=True, help="folder in derivatives/ with the label maps")
    parser.add_argument(
        "--suffix", required=True, type=types.comma_separated, help="of the images, one per channel: T1w,T2w"
    )
    parser.add_argument("--label-suffix", default="dseg", help="of the label maps: dseg (default), or mask")
    parser.add_argument("--label-desc", help="entity desc of the label maps, where there are several kinds")
    parser.add_argument("--out", type=Path, required=True, help="the dataset: data/raw/Dataset123_Name")


def predict(parser: argparse.ArgumentParser) -> None:
    """`segpipe predict --model MODEL -i IMAGES -o FOLDER`."""
    parser.add_argument("--model", type=Path, required=True, help="results/ of a pipeline, or an imported model")
    parser.add_argument(
        "-i",
        "--images",
        type=Path,
        required=True,
        nargs="+",
        help="folder with CASE_0000.nii.gz ..., one or several files, or the folder of a DICOM series",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the segmentations")
    parser.add_argument(
        "--configurations",
        type=types.comma_separated,
        help="2d,3d_fullres: probabilities averaged; default: all but first stages",
    )
    parser.add_argument("--folds", type=types.comma_separated, help="0,1: logits averaged; default: all")
    _add_checkpoint(parser)
    _add_weights(parser)
    _add_way(parser)
    written = parser.add_argument_group("what is written beside the segmentations")
    written.add_argument(
        "--probabilities",
        nargs="?",
        const="npz",
        default="none",
        choices=("npz", "nifti"),
        help="npz (CASE.npz, the default kind) or nifti (CASE_probabilities.nii.gz)",
    )
    written.add_argument("--dtype", choices=("float16", "float32"), help="of CASE.npz; default: float16")
    written.add_argument(
        "--uncertainty", action="store_true", help="CASE_uncertainty.nii.gz: how much folds and configurations disagree"
    )
    parser.add_argument("--device", default="auto", help="auto (cuda, else mps, else cpu), cpu, cuda, cuda:N, mps")
    parser.add_argument(
        "--num-gpus", type=types.count, default=1, metavar="N", help="GPUs that share the cases; default: 1"
    )


def _add_way(parser: argparse.ArgumentParser) -> None:
    """How the window slides; without a word what the preset says."""
    way = parser.add_argument_group("accuracy and speed")
    way.add_argument(
        "--preset",
        choices=("accurate", "fast"),
        default="accurate",
        help="accurate: as nnU-Net; fast: fewer tiles, no mirroring, bf16 (docs/benchmarks.md says what it costs)",
    )
    way.add_argument(
        "--step-size", type=types.share, help="of the sliding window, as a share of the patch; accurate: 0.5"
    )
    mirroring = way.add_mutually_exclusive_group()
    mirroring.add_argument(
        "--no-mirroring", dest="mirroring", action="store_false", default=None, help="no mean over mirrored versions"
    )
    mirroring.add_argument(
        "--mirror-axes",
        dest="mirroring",
        type=types.axes,
        help="0,1,2 for Z, Y, X of the plan, of those mirrored in training; accurate: all of these",
    )
    way.add_argument(
        "--precision",
        choices=("trained", "auto", "bf16", "fp16", "off"),
        help="of the convolutions; accurate: trained, as the model was",
    )


def ensemble(parser: argparse.ArgumentParser) -> None:
    """`segpipe ensemble FOLDER FOLDER ... -o OUT`."""
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER", help="CASE.npz beside CASE.nii.gz, or a validation"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the segmentations of the mean")
    parser.add_argument("--weights", type=types.numbers, help="1,2: one for each folder; default: all the same")
    parser.add_argument("--probabilities", action="store_true", help="write CASE.npz with the mean as well")


def postprocess(parser: argparse.ArgumentParser) -> None:
    """`segpipe postprocess FOLDER --rules postprocessing.json -o OUT`."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="with segmentations")
    parser.add_argument("--rules", type=Path, required=True, help="results/crossval/postprocessing.json")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for what they become")


def evaluate(parser: argparse.ArgumentParser) -> None:
    """`segpipe evaluate PRED REF`."""
    parser.add_argument("prediction", type=Path, metavar="PRED", help="folder with CASE.nii.gz ..., or one label map")
    parser.add_argument("reference", type=Path, metavar="REF", help="the same of the references; formats may differ")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="dataset.json; default: each value is a class")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="all numbers, as nnU-Net's summary.json has them")
    parser.add_argument("--csv", type=Path, metavar="FILE.csv", help="a line per case and class")
    parser.add_argument("--only-predicted", action="store_true", help="leave out references without a prediction")
    parser.add_argument(
        "--cases", type=Path, metavar="FILE", help="cases.tsv with a column splits.group: intervals draw patients"
    )
    parser.add_argument(
        "--nsd-tolerance-mm", type=types.positive, metavar="MM", help="default: evaluate.nsd_tolerance_mm"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="cases at once; default: OMP_NUM_THREADS, or cores")
    _add_params(parser)


def import_nnunet(parser: argparse.ArgumentParser) -> None:
    """`segpipe import-nnunet FOLDER|ZIP --out MODEL`."""
    parser.add_argument(
        "source", type=Path, help="nnU-Net's model folder (above fold_0), or a folder or zip of several"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="MODEL", help="new folder for the model")


def export_nnunet(parser: argparse.ArgumentParser) -> None:
    """`segpipe export-nnunet MODEL --out FOLDER`."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="results/ of a pipeline, or an imported model")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder for nnU-Net's")
    _add_members(parser)
    _add_checkpoint(parser)
    _add_weights(parser)


def export_onnx(parser: argparse.ArgumentParser) -> None:
    """`segpipe export-onnx MODEL --out FOLDER`."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="results/ of a pipeline, or an imported model")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder for the .onnx files")
    _add_members(parser)
    _add_checkpoint(parser)
    _add_weights(parser)


def export_nnunet_predictions(parser: argparse.ArgumentParser) -> None:
    """`segpipe export-nnunet-predictions PREDICTIONS --images IMAGES --model MODEL --out FOLDER`."""
    parser.add_argument(
        "predictions", type=Path, metavar="PREDICTIONS", help="folder with CASE.npz, or a validation folder"
    )
    parser.add_argument("--images", type=Path, required=True, help="folder with the images that were predicted")
    parser.add_argument("--model", type=Path, required=True, help="the model that predicted them")
    _add_checkpoint(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder for nnUNetv2_ensemble")


def export_nnunet_preprocessed(parser: argparse.ArgumentParser) -> None:
    """`segpipe export-nnunet-preprocessed --out nnUNet_preprocessed`."""
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="nnU-Net's nnUNet_preprocessed; the dataset is new there",
    )
    parser.add_argument(
        "--configurations", type=types.comma_separated, help="2d,3d_fullres; default: those of params.yaml"
    )
    _add_params(parser)


def _add_params(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--params", type=Path, metavar="FILE", help="settings; default: params.yaml, here or of segpipe"
    )


def _add_members(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--configurations", type=types.comma_separated, help="2d,3d_fullres; default: all")
    parser.add_argument("--folds", type=types.comma_separated, help="0,1; default: all")


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", choices=("final", "best"), default="final", help="default: final")


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", choices=("raw", "averaged"), default="raw", help="averaged: those of train.ema")
