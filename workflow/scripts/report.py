"""Write the report."""

from argparse import Namespace
from pathlib import Path

from segpipe.cli import scripts
from segpipe.params import Params


def main(args: Namespace, params: Params) -> None:
    """Write report.html: curves, tables and pictures of a run on one page."""
    from segpipe.data.cases import Cases
    from segpipe.report import page, results

    cases = Cases.read(Path(args.cases), params.dataset)
    predicted = Path(args.predictions) if args.predictions else None
    trainings, crossval = [Path(folder) for folder in args.trainings], [Path(path) for path in args.crossval]
    page.write(
        results.read(cases, Path(args.plan), crossval, trainings, Path(args.volumes), predicted, params), Path(args.out)
    )


if __name__ == "__main__":
    scripts.run(main, "--cases", "--plan", "--crossval+", "--trainings+", "--volumes", "--predictions?", "--out")
