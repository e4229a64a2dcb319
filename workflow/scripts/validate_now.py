"""Validate a training that still runs (docs/while_training.md)."""

from argparse import Namespace

from segpipe.cli import scripts
from segpipe.params import Params


def main(args: Namespace, params: Params) -> None:
    """Validate with the present checkpoint, latest or best; writes validation_latest or validation_best_so_far."""
    from segpipe.inference import while_training

    while_training.validate(args.configuration, args.fold, args.checkpoint, params)


if __name__ == "__main__":
    scripts.run(main, "--configuration", "--fold", "--checkpoint")
