"""Gather what a hyper-parameter search found."""

from argparse import Namespace
from pathlib import Path

from segpipe.cli import scripts
from segpipe.params import Params


def main(args: Namespace, params: Params) -> None:
    """Write trials.csv, best_params.yaml and report.html into the folder --out."""
    from segpipe.search.installed import require_optuna

    require_optuna()
    from segpipe.report import search_page
    from segpipe.search import results

    search = results.write([Path(path) for path in args.workers], params, Path(args.out))
    search_page.write(search, params, Path(args.out))


if __name__ == "__main__":
    scripts.run(main, "--workers+", "--out")
