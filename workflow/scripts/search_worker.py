"""Take part in a hyper-parameter search."""

from argparse import Namespace
from pathlib import Path

from segpipe.cli import scripts
from segpipe.params import Params


def main(args: Namespace, params: Params) -> None:
    """Train one trial after another until all are begun; write --out."""
    from segpipe.search.installed import require_optuna

    require_optuna()
    from segpipe.data.cases import Cases
    from segpipe.inference import full_validation
    from segpipe.prepare import store
    from segpipe.search import worker
    from segpipe.search.trial import Data

    cases = Cases.read(Path(args.cases), params.dataset)
    opened = store.ensure(cases, Path(args.plan), Path(args.manifest), params.runtime)
    data = Data(opened, Path(args.splits), Path(args.fingerprint))
    worker.work(data, params, Path(args.out), full_validation.scorer)


if __name__ == "__main__":
    scripts.run(main, "--cases", "--fingerprint", "--plan", "--splits", "--manifest", "--out")
