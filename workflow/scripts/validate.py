"""Predict and score the validation cases of one fold."""

from argparse import Namespace
from pathlib import Path

from segpipe.cli import scripts
from segpipe.params import Params


def main(args: Namespace, params: Params) -> None:
    """Predict the validation cases with one checkpoint; write segmentations, softmax and summary.json."""
    from segpipe.data.cases import Cases
    from segpipe.inference import validation
    from segpipe.prepare import store

    cases = Cases.read(Path(args.cases), params.dataset)
    cases_store = store.ensure(cases, Path(args.plan), Path(args.manifest), params.runtime)
    validation.validate(cases_store, Path(args.splits), args.fold, Path(args.model), Path(args.out), params)


if __name__ == "__main__":
    scripts.run(main, "--configuration", "--fold", "--cases", "--plan", "--splits", "--manifest", "--model", "--out")
