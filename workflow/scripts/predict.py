"""Predict the cases of imagesTs."""

from argparse import Namespace
from pathlib import Path

from segpipe.cli import scripts
from segpipe.params import Params


def before_ranks(args: Namespace, params: Params) -> Path:
    """The lock of what the ranks write."""
    from segpipe.inference import predict_dataset

    return predict_dataset.lock(Path(args.out))


def main(args: Namespace, params: Params) -> None:
    """Predict imagesTs: mean of logits over folds, then of softmax over configurations."""
    from segpipe.data.cases import Cases
    from segpipe.inference.predict_dataset import Learnt, predict_dataset
    from segpipe.ranks import joined

    cases, paths = Cases.read(Path(args.cases), params.dataset), [Path(model) for model in args.models]
    learnt = Learnt(*(path and Path(path) for path in (args.choice, args.rules, args.calibration)))
    with joined() as ranks:
        predict_dataset(cases, paths, params.configurations, Path(args.out), params, learnt, ranks)


if __name__ == "__main__":
    scripts.run(
        main,
        *("--cases", "--models+", "--choice?", "--rules?", "--calibration?", "--out"),
        before_ranks=before_ranks,
    )
