"""What is kept of trials that have ended: of all the numbers, of the best one the weights."""

from pathlib import Path

from segpipe import digest
from segpipe.search.study import Search

# not `diverged.pth`, which says why
CHECKPOINTS = ("latest.pth", "best_new.pth", "best.pth", "final.pth", "checkpoint_best.pth", "checkpoint_final.pth")


def tidy(search: Search) -> None:
    """Remove the checkpoints of ended trials, but those of the best: a trial that has ended is never continued.

    Any job may do it at any time: a trial that is not the best will not be later.
    """
    best = search.best()
    for one in search.trials:
        if one.state.is_finished() and (best is None or one.number != best.number):
            for path in search.folder_of(one.number).rglob("*.pth"):
                if path.name in CHECKPOINTS:
                    path.unlink(missing_ok=True)


def publish(trial: Path, results: Path) -> None:
    """Let the pipeline find the best trial's training as its own: with the best values it is not trained again.

    trial : its folder; results : of the pipeline. A training is known by its digest, wherever it was done.
    """
    for final in trial.glob("*/fold_*/state/*/final.pth"):
        state = results / final.parent.relative_to(trial)
        if not (state / final.name).exists():
            files = [path for path in final.parent.iterdir() if path.is_file() and path != final]
            for path in [*files, final]:  # which comes last, as it says that the others are there
                digest.link(path, state / path.name)
