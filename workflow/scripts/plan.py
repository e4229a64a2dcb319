"""Plan the configurations."""

from argparse import Namespace
from pathlib import Path

from segpipe.cli import scripts
from segpipe.params import Params


def main(args: Namespace, params: Params) -> None:
    """Turn the fingerprint and the settings into a plan."""
    from segpipe.data.cases import Cases
    from segpipe.prepare import planning

    cases = Cases.read(Path(args.cases), params.dataset)
    planning.write(cases, Path(args.fingerprint), params, Path(args.out))


if __name__ == "__main__":
    scripts.run(main, "--cases", "--fingerprint", "--out")
