# `snakemake search`: trainings with other settings, by any number of jobs, and which settings were best.
# The trials and their journal lie in results/search/<digest>/ and are not declared: they outlive a worker that is killed,
# and the study is found again when its settings come back. A worker declares only that all trials are begun.
from segpipe.search import ranges

SEARCHED = ranges.configuration(PARAMS)


def checked_search(wildcards):
    """No file. A function of the input, so that a `search` that cannot be stops nobody but who asks for it, and him
    before anything runs."""
    try:
        ranges.check(PARAMS, LABELS)
    except SegpipeError as error:
        raise WorkflowError(str(error))
    return []


rule search_worker:
    input:
        checked_search,
        cases=rules.check.output.cases,
        fingerprint=rules.fingerprint.output,
        plan=rules.plan.output,
        splits=rules.splits.output,
        manifest=f"{PREPARED}/{SEARCHED}/manifest.json",
        named=named_files(PARAMS.train),
    output:
        "results/search/worker_{worker}.json",
    log:
        "logs/search/worker_{worker}.log",
    wildcard_constraints:
        worker=r"\d+",
    threads: 8
    resources:
        gpu=1,
    params:
        script=script("search_worker"),
        study=ranges.of_study(PARAMS),
        trials=PARAMS.search.trials,
        code=ranges.code_of_study(PARAMS),
    message:
        "search: worker {wildcards.worker}"
    shell:
        "python {params.script} --cases {input.cases} --fingerprint {input.fingerprint} --plan {input.plan}"
        " --splits {input.splits} --manifest {input.manifest} --out {output} --log {log}"


# Any edit of params.yaml is in best_params.yaml as well; it trains nothing.
rule search:
    input:
        workers=expand(rules.search_worker.output, worker=range(PARAMS.search.workers)),
    output:
        "results/search/trials.csv",
        "results/search/best_params.yaml",
        expand(
            "results/search/{plot}.png",
            plot=["history", "curves", "slices", "importances"],
        ),
    log:
        "logs/search/search.log",
    params:
        script=script("search"),
        settings=digest_of("params.yaml"),
        code=digest.of_code("search"),
    message:
        "search: the table of all trials, plots, the best params.yaml"
    shell:
        "python {params.script} --workers {input.workers} --out results/search --log {log}"
