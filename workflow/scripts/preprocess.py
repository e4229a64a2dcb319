"""Preprocess the cases for one configuration."""

from argparse import Namespace
from pathlib import Path

from segpipe.cli import scripts
from segpipe.params import Params


def main(args: Namespace, params: Params) -> None:
    """Crop, normalise and resample every training case; write the manifest of the stored cases."""
    from segpipe.data.cases import Cases
    from segpipe.prepare import store

    cases = Cases.read(Path(args.cases), params.dataset)
    store.build(cases, Path(args.plan), args.configuration, Path(args.out), params.runtime)


if __name__ == "__main__":
    scripts.run(main, "--configuration", "--cases", "--plan", "--out")
