"""How long the softmax of a case takes to save and to read: segpipe's file beside what nnU-Net calls.

    python benchmarks/softmax_saving.py --real FOLDER

nnU-Net calls numpy.savez_compressed with float32. FOLDER has CASE.npz of real predictions, of segpipe or nnU-Net; they
are saved one after the other and count as one. Both sides take turns in one process; seconds are medians (lowest-
highest). Prints the table of docs/benchmarks.md and writes results/softmax_saving.json beside this file; exits with 1
where float16 takes more than 0.2 of nnU-Net's CPU time, or a file does not hold what it was given. In real time small
files take longer: segpipe waits until a file is on the disk before it gets its name, nnU-Net does not.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import torch
from numpy.typing import NDArray

from segpipe.inference import softmax_file

OUT = Path(__file__).with_name("results") / "softmax_saving.json"
LIMIT = 0.2
SIDES = ("nnunet_float32", "segpipe_float16", "segpipe_float32")

Array = NDArray[Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, help="folder with CASE.npz of real predictions")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cases = {
        "synthetic, 3 x 200 x 256 x 256": lambda: [smooth(3, (200, 256, 256))],
        "synthetic, 20 x 48 x 192 x 192": lambda: [smooth(20, (48, 192, 192))],
    }
    if arguments.real:
        found = sorted(arguments.real.glob("*.npz"))
        cases[f"{len(found)} real predictions"] = lambda: [softmax_file.load(path).astype(np.float32) for path in found]
    measured = {name: measure(make(), arguments.rounds) for name, make in cases.items()}
    facts = {"hardware": measuring.hardware(), "versions": measuring.versions("numpy", "torch", "isal", "stream-zip")}
    OUT.write_text(json.dumps({**facts, "threads": torch.get_num_threads(), "cases": measured}, indent=1) + "\n")
    print(report(measured))
    slow = [name for name, sides in measured.items() if ratio(sides, "segpipe_float16", "cpu_s") > LIMIT]
    sys.exit(f"above {LIMIT}: {', '.join(slow)}" if slow else 0)


def smooth(n_classes: int, shape: Sequence[int]) -> Array:
    """Smooth random logits and noise: most voxels are sure, and the background is the most frequent class."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.randn((1, n_classes, *(n // 8 for n in shape)), generator=random)
    logits = torch.nn.functional.interpolate(coarse, size=tuple(shape), mode="trilinear")[0] * 25
    logits[0] += 10
    logits += 0.3 * torch.randn(logits.shape, generator=random)
    return logits.softmax(0).numpy()


def measure(arrays: Sequence[Array], rounds: int) -> dict[str, Any]:
    """Seconds and bytes of each side; the sides take turns."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.npz"
        saves: dict[str, Callable[[Array], Any]] = {
            "nnunet_float32": lambda array: np.savez_compressed(path, probabilities=array),
            "segpipe_float16": lambda array: softmax_file.save(path, array, "float16"),
            "segpipe_float32": lambda array: softmax_file.save(path, array, "float32"),
        }
        taken: dict[str, dict[str, list[float]]] = {side: {"save": [], "cpu": [], "read": []} for side in SIDES}
        sizes = dict.fromkeys(SIDES, 0)
        for _ in range(rounds):
            for side in SIDES:
                spent = one_round(arrays, side, saves[side], path)
                sizes[side] = int(spent.pop("bytes"))
                for key, seconds in spent.items():
                    taken[side][key].append(seconds)
    return {
        side: {"bytes": sizes[side], **{f"{key}_s": measuring.spread(values) for key, values in taken[side].items()}}
        for side in SIDES
    }


def one_round(arrays: Sequence[Array], side: str, save: Callable[[Array], Any], path: Path) -> dict[str, float]:
    spent = {"save": 0.0, "cpu": 0.0, "read": 0.0, "bytes": 0.0}
    for array in arrays:
        cpu, wall = time.process_time(), time.perf_counter()
        save(array)
        spent["save"] += time.perf_counter() - wall
        spent["cpu"] += time.process_time() - cpu
        spent["bytes"] += path.stat().st_size
        wall = time.perf_counter()
        read = np.load(path)["probabilities"]
        spent["read"] += time.perf_counter() - wall
        if not np.array_equal(read, array.astype(side.split("_")[1])):
            sys.exit(f"{side}: another content than was given")
    return spent


def ratio(sides: dict[str, Any], side: str, kind: str) -> float:
    """Of the median time to save, to nnU-Net's; save_s or cpu_s."""
    return float(sides[side][kind]["median"] / sides["nnunet_float32"][kind]["median"])


def report(measured: dict[str, Any]) -> str:
    header = ["softmax", "saved by", "save s", "of nnU-Net's", "save CPU s", "of nnU-Net's", "numpy.load s", "MB"]
    rows = [
        [
            name,
            side.replace("_", ", ").replace("nnunet", "nnU-Net"),
            shown(of_side["save_s"]),
            f"{ratio(sides, side, 'save_s'):.2f}",
            shown(of_side["cpu_s"]),
            f"{ratio(sides, side, 'cpu_s'):.2f}",
            shown(of_side["read_s"]),
            f"{of_side['bytes'] / 1e6:.1f}",
        ]
        for name, sides in measured.items()
        for side, of_side in sides.items()
    ]
    return measuring.table(header, rows)


def shown(spread: dict[str, Any]) -> str:
    return f"{spread['median']:.2f} ({spread['min']:.2f}-{spread['max']:.2f})"


if __name__ == "__main__":
    main()
