"""Learn what is better removed from segmentations."""

from argparse import Namespace
from pathlib import Path

from segpipe.cli import scripts
from segpipe.params import Params


def main(args: Namespace, params: Params) -> None:
    """Try rules on the segmentations of all folds; write postprocessing.json with those that help."""
    from segpipe.data.cases import Cases
    from segpipe.inference import postprocess_crossval

    cases = Cases.read(Path(args.cases), params.dataset)
    summaries, validations = ([Path(path) for path in paths] for paths in (args.summaries, args.validations))
    postprocess_crossval.learn(cases, summaries, validations, Path(args.out), params)


if __name__ == "__main__":
    scripts.run(main, "--cases", "--summaries+", "--validations+", "--of", "--out")
