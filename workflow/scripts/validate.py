"""Predict and score the validation cases of one fold."""

from argparse import Namespace
from pathlib import Path

from segpipe.cli import scripts
from segpipe.params import Params


def before_ranks(args: Namespace, params: Params) -> Path:
    """The lock of what the ranks write."""
    from segpipe.inference import validation

    return validation.lock(Path(args.out))


def main(args: Namespace, params: Params) -> None:
    """Predict the validation cases with one checkpoint; write segmentations, softmax and summary.json."""
    from segpipe.data.cases import Cases
    from segpipe.inference import validation
    from segpipe.prepare import store
    from segpipe.ranks import joined

    cases, plan, manifest = Cases.read(Path(args.cases), params.dataset), Path(args.plan), Path(args.manifest)
    with joined() as ranks:
        opened = ranks.first_before_others(lambda: store.ensure(cases, plan, manifest, params.runtime))
        splits, model, out = Path(args.splits), Path(args.model), Path(args.out)
        validation.validate(opened, splits, args.fold, model, out, params, ranks)


if __name__ == "__main__":
    scripts.run(
        main,
        *("--configuration", "--fold", "--cases", "--plan", "--splits", "--manifest", "--model", "--out"),
        before_ranks=before_ranks,
    )
