"""Fail unless a summary.json holds what it should: complete tables, the members, and Dice where it is asked for."""

import argparse
import json
from pathlib import Path


def main() -> None:
    """Read one summary and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("summary", type=Path)
    parser.add_argument("--dice", type=float, default=0.0, help="smallest mean Dice of every foreground class")
    parser.add_argument("--members", nargs="+", default=["3d_fullres"], help="configurations that are in it")
    arguments = parser.parse_args()
    content = json.loads(arguments.summary.read_text())
    dice = {label: metrics["Dice"] for label, metrics in content["mean"].items()}
    print("mean Dice:", ", ".join(f"class {label} {value:.4f}" for label, value in dice.items()))
    assert sorted(content["members"]) == sorted(arguments.members), f"members: {sorted(content['members'])}"
    assert len(dice) == len(content["labels"]["names"]) - 1, f"classes: {sorted(dice)}"
    assert all(row["metrics"].keys() == dice.keys() for row in content["metric_per_case"])
    low = {label: value for label, value in dice.items() if value < arguments.dice}
    assert not low, f"below {arguments.dice}: {low}"


if __name__ == "__main__":
    main()
