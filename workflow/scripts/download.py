"""Download a task of the Medical Segmentation Decathlon."""

from argparse import Namespace
from pathlib import Path

from segpipe.cli import scripts
from segpipe.params import Params


def main(args: Namespace, params: Params) -> None:
    """Download and unpack the task that the folder --dataset is called after."""
    from segpipe.data import download

    download.download(Path(args.dataset), params.download)


if __name__ == "__main__":
    scripts.run(main, "--dataset")
