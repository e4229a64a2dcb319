"""Preprocess the cases for the second stage of the cascade."""

from argparse import Namespace
from pathlib import Path

from segpipe.cli import scripts
from segpipe.params import Params


def main(args: Namespace, params: Params) -> None:
    """Preprocess every training case, with what the stage before segmented; write the manifest of the stored cases."""
    from segpipe.data.cases import Cases
    from segpipe.inference import previous_stage
    from segpipe.prepare import store

    cases = Cases.read(Path(args.cases), params.dataset)
    previous = previous_stage.segmentations(cases, [Path(folder) for folder in args.previous])
    store.build(cases, Path(args.plan), args.configuration, Path(args.out), params.runtime, previous)


if __name__ == "__main__":
    scripts.run(main, "--configuration", "--cases", "--plan", "--previous+", "--out")
