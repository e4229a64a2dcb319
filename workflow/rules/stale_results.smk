# The guard against results that outlive what they were made of.
import itertools
import shutil


def drop_dangling(there_at_start):
    """Remove results whose inputs went during this run, and in turn what was made of those.

    A failed job loses its outputs, but Snakemake has already noted its new inputs and settings. With a result further
    down still there, the next run would say "Nothing to be done" and leave the old model's numbers (snakemake #1978).
    Results that came without their inputs, copied or restored, are left alone.
    """
    for inputs, outputs in jobs():
        if any(file in there_at_start and not os.path.exists(file) for file in inputs):
            for file in filter(os.path.exists, outputs):
                print(f"removed, what it was made of is gone: {file}", file=sys.stderr)
                shutil.rmtree(file) if os.path.isdir(file) else os.remove(file)


def existing_inputs():
    """What is there now of all that any job reads."""
    return {file for inputs, _ in jobs() for file in inputs if os.path.exists(file)}


def jobs():
    """(inputs, outputs) of every job there can be, asked for or not; rules stand in the order of the data."""
    values = {
        "configuration": CONFIGURATIONS,
        "fold": [*range(PARAMS.splits.n_folds), "all"],
        "checkpoint": ["final", "best"],
    }
    for step in workflow.rules:
        names = sorted(step.wildcard_names)
        files = getattr(rules, step.name)
        for choice in itertools.product(*(values[name] for name in names)):
            chosen = dict(zip(names, choice))
            yield expand(files.input, **chosen), expand(files.output, **chosen)
