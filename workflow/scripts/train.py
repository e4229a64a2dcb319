"""Train one configuration on one fold."""

from argparse import Namespace
from pathlib import Path

from segpipe.cli import scripts
from segpipe.params import Params


def before_ranks(args: Namespace, params: Params) -> Path:
    """Refuse more ranks than a batch has samples; the lock of what they write."""
    from segpipe.prepare import plan
    from segpipe.training import job, parallel

    planned = plan.read(Path(args.plan))["configurations"][args.configuration]
    parallel.require_samples(params.runtime.num_gpus, planned)
    return job.lock(Path(args.out))


def main(args: Namespace, params: Params) -> None:
    """Train, or continue where the same training stopped; write checkpoints, metrics.csv and progress.png."""
    from segpipe.data.cases import Cases
    from segpipe.inference import full_validation
    from segpipe.prepare import store
    from segpipe.ranks import joined
    from segpipe.training import job

    cases, plan, manifest = Cases.read(Path(args.cases), params.dataset), Path(args.plan), Path(args.manifest)
    with joined() as ranks:
        opened = ranks.first_before_others(lambda: store.ensure(cases, plan, manifest, params.runtime))
        out, score = Path(args.out), full_validation.scorer
        job.train(opened, Path(args.splits), args.fold, out, params, score, ranks=ranks)


if __name__ == "__main__":
    scripts.run(
        main,
        *("--configuration", "--fold", "--cases", "--plan", "--splits", "--manifest", "--out", "--on-extend?"),
        before_ranks=before_ranks,
    )
