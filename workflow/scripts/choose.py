"""Choose among the configurations and their ensembles."""

from argparse import Namespace
from pathlib import Path

from segpipe.cli import scripts
from segpipe.params import Params


def main(args: Namespace, params: Params) -> None:
    """Score every set of configurations on the validations of all folds; write model_choice.json."""
    from segpipe.data.cases import Cases
    from segpipe.inference import choice

    cases = Cases.read(Path(args.cases), params.dataset)
    choice.choose(cases, [Path(folder) for folder in args.validations], Path(args.out), params)


if __name__ == "__main__":
    scripts.run(main, "--cases", "--validations+", "--out")
