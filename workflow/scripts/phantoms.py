"""Generate the phantom dataset."""

from argparse import Namespace
from pathlib import Path

from segpipe.cli import scripts
from segpipe.params import Params


def main(args: Namespace, params: Params) -> None:
    """Generate the phantom dataset into the folder --out."""
    from segpipe.data import phantoms

    phantoms.generate(Path(args.out), params.phantoms)


if __name__ == "__main__":
    scripts.run(main, "--out")
