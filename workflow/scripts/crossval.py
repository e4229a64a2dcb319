"""Gather the folds into the cross-validation's summary."""

from argparse import Namespace
from pathlib import Path

from segpipe.cli import scripts
from segpipe.params import Params


def main(args: Namespace, params: Params) -> None:
    """Gather the folds' summaries into one over all cases."""
    from segpipe.data.cases import Cases
    from segpipe.evaluation import crossval

    cases, summaries = Cases.read(Path(args.cases), params.dataset), [Path(path) for path in args.summaries]
    crossval.gather(cases, summaries, Path(args.postprocessing), Path(args.out), Path(args.metrics), params)


if __name__ == "__main__":
    scripts.run(main, "--cases", "--summaries+", "--postprocessing", "--out", "--metrics")
