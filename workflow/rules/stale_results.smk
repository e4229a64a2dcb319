# The guard against results that outlive what they were made of.
import itertools
import shutil

from snakemake.io import IOFile


def drop_dangling():
    """Remove results whose inputs are gone, and in turn what was made of those.

    A failed job loses its outputs, but Snakemake has already noted its new inputs and settings. With a result further
    down still there, the next run would say "Nothing to be done" and leave the old model's numbers (snakemake #1978).
    Results that Snakemake did not make here, copied or restored by DVC, are left alone.
    """
    while dangling := [
        file
        for inputs, outputs in jobs()
        if not all(os.path.exists(file) for file in inputs)
        for file in filter(was_made_here, outputs)
    ]:
        for file in filter(os.path.exists, dangling):
            print(f"removed, what it was made of is gone: {file}", file=sys.stderr)
            shutil.rmtree(file) if os.path.isdir(file) else os.remove(file)


def was_made_here(file):
    """Whether a file is there and Snakemake has a record of making it."""
    return os.path.exists(file) and workflow.persistence.metadata(file) is not None


def jobs():
    """(inputs, outputs) of every job there can be, asked for or not."""
    values = {
        "configuration": CONFIGURATIONS,
        "fold": [*range(PARAMS.splits.n_folds), "all"],
        "checkpoint": ["final", "best"],
        "worker": range(PARAMS.search.workers),
    }
    for step in workflow.rules:
        names = sorted(step.wildcard_names)
        files = getattr(rules, step.name)
        for choice in itertools.product(*(values[name] for name in names)):
            chosen = dict(zip(names, choice))
            outputs = expand(files.output, **chosen)
            named = [file for file in files.input if not callable(file)]
            yield expand(named, **chosen), [IOFile(file, step) for file in outputs]
