"""One training on several GPUs: the same samples, the same weights, how much faster?

    python benchmarks/ranks.py --work FOLDER [--dataset FOLDER] [--ranks 1 2] [--rounds 3] [--device cpu]

Trains the same fold with different numbers of ranks, in turns, each time from the beginning: seconds per step (medians
of the epochs but the first, and their spread over the rounds), weights and metrics beside those of one rank. Before
that the samples of the first steps are drawn for each number of ranks and compared, voxels included.
On the CPU the ranks of a training share its cores; on a machine with several GPUs name as many as there are. Without a
dataset: the phantoms. Keeps `results/ranks_<device>.json` and prints a table.
"""

import argparse
import csv
import hashlib
import json
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import measuring
import running
import yaml

REPO = Path(__file__).resolve().parents[1]
FOLD = Path("results/3d_fullres/fold_0")
COMPARED_STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for what is trained")
    parser.add_argument("--dataset", type=Path, help="in nnU-Net's raw layout; default: the phantoms")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="runtime.device; default: cpu")
    parser.add_argument("--threads", type=int, default=measuring.n_cores(), help="CPU threads of a training")
    parser.add_argument("--patch", type=int, nargs=3, default=[40, 56, 40])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=25, help="steps of an epoch")
    parser.add_argument("--precision", default="auto", help="train.precision; default: auto")
    args = parser.parse_args()
    running.leave_on_sigterm()
    args.work.mkdir(parents=True, exist_ok=True)
    settings = prepared(args)
    samples = {n: drawn(args.work, n) for n in args.ranks}
    runs: dict[int, list[dict[str, Any]]] = {n: [] for n in args.ranks}
    for number in range(args.rounds):
        for n in args.ranks:
            runs[n].append(trained(args.work, settings, n, keep=number == 0))
            print(f"round {number + 1}, {n} ranks: {runs[n][-1]['seconds_per_step']:.4f} s/step", file=sys.stderr)
    report(args, samples, runs)


def prepared(args: argparse.Namespace) -> dict[str, Any]:
    """A project up to its preprocessed cases, and its settings."""
    settings = yaml.safe_load((REPO / "params.yaml").read_text())
    if args.dataset:
        settings["dataset"] = str(args.dataset.resolve())
    overrides = {"patch_size": args.patch, "batch_size": args.batch, "features_base": args.features}
    settings["plan"]["overrides"].update(overrides)
    settings["train"].update(epochs=args.epochs, iterations_per_epoch=args.iterations, precision=args.precision)
    settings["runtime"].update(device=args.device, threads=args.threads)
    write(args.work, settings)
    name = Path(settings["dataset"]).name
    goals = [f"data/preprocessed/{name}/{file}" for file in ("3d_fullres/manifest.json", "splits.json")]
    snakemake(args.work, *goals)
    return dict(settings)


def write(work: Path, settings: dict[str, Any]) -> None:
    (work / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))


def snakemake(work: Path, *goals: str) -> None:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPO / "Snakefile"), "--cores", "all", *goals]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])


def drawn(work: Path, n: int) -> list[str]:
    """A line for each sample of the first steps: step, case, place, digest of its voxels after augmentation."""
    code = f"import ranks; ranks.draw({n})"
    environment = {"PYTHONPATH": f"{REPO}:{Path(__file__).parent}"}
    done = subprocess.run([sys.executable, "-c", code], cwd=work, env=environment, capture_output=True, check=True)
    return sorted(done.stdout.decode().splitlines())


def draw(n: int) -> None:
    """Print the samples that `n` ranks would draw, in the project of the working directory."""
    import torch  # noqa: PLC0415  # not needed by the benchmark itself

    from segpipe import params as params_yaml  # noqa: PLC0415
    from segpipe.data import splits  # noqa: PLC0415
    from segpipe.data.cases import Cases  # noqa: PLC0415
    from segpipe.prepare import store  # noqa: PLC0415
    from segpipe.ranks import Ranks  # noqa: PLC0415
    from segpipe.training import tiers  # noqa: PLC0415
    from segpipe.training.feed import Feed  # noqa: PLC0415

    settings = params_yaml.load()
    folder = Path("data/preprocessed", settings.dataset_name)
    cases = Cases.read(folder / "cases.json", settings.dataset)
    opened = store.ensure(cases, folder / "plan.json", folder / "3d_fullres/manifest.json", settings.runtime)
    fold = splits.read(folder / "splits.json", "0")
    held = tiers.hold(opened, [*fold["train"], *fold["val"]], settings, torch.device("cpu"))
    whole = Feed(opened, fold["train"], fold["val"], settings.train, held)
    for rank in range(n):
        feed = replace(whole, ranks=Ranks(rank, n))
        for step in range(COMPARED_STEPS):
            batch = feed.training(step)
            for (case, box), image, label in zip(batch.sources, batch.image, batch.label, strict=True):
                voxels = hashlib.sha256(image.numpy().tobytes() + label.numpy().tobytes()).hexdigest()[:16]
                print(step, case, *box.start, voxels)


def trained(work: Path, settings: dict[str, Any], n: int, keep: bool) -> dict[str, Any]:
    """One training from its beginning: seconds per step, and digest and numbers of its result."""
    shutil.rmtree(work / "results", ignore_errors=True)
    write(work, {**settings, "runtime": {**settings["runtime"], "num_gpus": n}})
    snakemake(work, str(FOLD / "checkpoint_final.pth"))
    (state,) = (work / FOLD / "state").glob("*/timings.csv")
    seconds = [float(row["seconds_per_step"]) for row in csv.DictReader(state.open())]
    rows = [{key: float(value or "nan") for key, value in row.items()} for row in read(work / FOLD / "metrics.csv")]
    if keep:
        shutil.copy(work / FOLD / "checkpoint_final.pth", work / f"{n}.pth")
    weights = weights_of(work / FOLD / "checkpoint_final.pth")
    return {
        "seconds_per_step": statistics.median(seconds[1:]),
        "weights": hashlib.sha256(b"".join(value.numpy().tobytes() for value in weights)).hexdigest()[:16],
        "rows": rows,
    }


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def weights_of(path: Path) -> list[Any]:
    import torch  # noqa: PLC0415

    return list(torch.load(path, map_location="cpu", weights_only=True)["network"].values())


def report(args: argparse.Namespace, samples: dict[int, list[str]], runs: dict[int, list[dict[str, Any]]]) -> None:
    first = args.ranks[0]
    of_one = [run["seconds_per_step"] for run in runs[first]]
    table = []
    for n in args.ranks:
        seconds = [run["seconds_per_step"] for run in runs[n]]
        ratios = [own / other for own, other in zip(seconds, of_one, strict=True)]
        table.append(
            {
                "ranks": n,
                "seconds_per_step": seconds,
                "ratio": ratios,
                "same_samples": samples[n] == samples[first],
                "bit_equal_runs": len({run["weights"] for run in runs[n]}) == 1,
                **distance(args.work, n, first),
                "largest_dice_difference": largest(runs[n][0]["rows"], runs[first][0]["rows"], "dice"),
                "largest_loss_difference": largest(runs[n][0]["rows"], runs[first][0]["rows"], "loss"),
            }
        )
    asked = {
        key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items() if key != "work"
    }
    asked["dataset"] = Path(asked["dataset"]).name if asked["dataset"] else "phantoms"
    content = {
        "settings": asked,
        "hardware": measuring.hardware(),
        "versions": measuring.versions("torch", "segpipe"),
        "table": table,
    }
    path = Path(__file__).with_name("results") / f"ranks_{args.device.split(':')[0]}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(
        "| ranks | s/step (spread) | beside one | same samples | runs bit-equal | weights differ | Dice, loss differ |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in table:
        seconds, ratios = row["seconds_per_step"], row["ratio"]
        print(
            f"| {row['ranks']} | {statistics.median(seconds):.4f} ({min(seconds):.4f}-{max(seconds):.4f}) "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) "
            f"| {row['same_samples']} | {row['bit_equal_runs']} "
            f"| {row['largest_difference']:.1e}, of their length {row['relative_distance']:.1e} "
            f"| {row['largest_dice_difference']:.1e}, {row['largest_loss_difference']:.1e} |"
        )


def distance(work: Path, n: int, first: int) -> dict[str, float]:
    """How far the weights of `n` ranks are from those of `first`."""
    own, other = weights_of(work / f"{n}.pth"), weights_of(work / f"{first}.pth")
    apart = sum(float(((a - b).double() ** 2).sum()) for a, b in zip(own, other, strict=True)) ** 0.5
    length = sum(float((b.double() ** 2).sum()) for b in other) ** 0.5
    largest_difference = max(float((a - b).abs().max()) for a, b in zip(own, other, strict=True))
    return {"largest_difference": largest_difference, "relative_distance": apart / length}


def largest(rows: list[dict[str, float]], others: list[dict[str, float]], what: str) -> float:
    """The largest difference of the columns that are called so, over all epochs."""
    return max(
        abs(row[key] - other[key])
        for row, other in zip(rows, others, strict=True)
        for key in row
        if what in key and row[key] == row[key] and other[key] == other[key]
    )


if __name__ == "__main__":
    main()
