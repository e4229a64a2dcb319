# `snakemake search`: trainings with other settings, by any number of jobs, and which settings were best.
# The trials and their journal lie in results/search/<digest>/ and are not declared: they outlive a worker that is killed,
# and the study is found again when its settings come back. A worker declares only that all trials are begun.
from segpipe.search import ranges

SEARCHED = ranges.configuration(PARAMS)
IS_LOCAL = workflow.is_main_process and workflow.resource_settings.nodes is None


def checked_search(wildcards):
    """No file. A function of the input: a `search` that cannot be stops a call that asks for it, before anything runs,
    and no other one.
    """
    try:
        ranges.check(PARAMS, LABELS)
    except SegpipeError as error:
        stop(error)
    return []


def tables_of_studies():
    """path: when it was written, in ns, of the table of each study."""
    tables = Path("results/search").glob("*/trials.csv")
    return {path: path.stat().st_mtime_ns for path in tables}


TABLES_BEFORE = tables_of_studies()


def keep_table(snakemake_logs):
    """Where a worker failed, put the trials of its study as they are now where `search` would have put them. Without
    the best settings beside it, which only `search` writes, the next call knows that it has to run.

    A table that no worker of this call wrote may be of another study: one may fail before it has opened its own.
    """
    text = "".join(Path(path).read_text() for path in snakemake_logs)
    written = dict(tables_of_studies().items() - TABLES_BEFORE.items())
    if "Error in rule search_worker:" in text and written:
        table = Path("results/search/trials.csv")
        digest.copy(max(written, key=written.get), table)
        print(f"as the trials are now: {table}", file=sys.stderr)


def named_in_choices():
    """Modules of the user's that choices name: trials follow from them too."""
    return [
        str(path) for path in map(plugins.file_of, PARAMS.search.import_paths()) if path
    ]


def cores_of_worker():
    """Workers that train side by side here share the cores: with 8 for each, the first would have those of a small
    machine alone, and the others would come when all is done. On a cluster each has a request of its own.
    """
    if not IS_LOCAL:
        return 8
    gpu = workflow.global_resources["gpu"]
    at_once = min(PARAMS.search.workers, getattr(gpu, "value", gpu))
    return max(1, min(8, (workflow.resource_settings.cores or 8) // max(1, at_once)))


rule search_worker:
    input:
        checked_search,
        cases=rules.check.output.cases,
        fingerprint=rules.fingerprint.output,
        plan=rules.plan.output,
        splits=rules.splits.output,
        manifest=f"{PREPARED}/{SEARCHED}/manifest.json",
        named=[*named_files(PARAMS.train), *named_in_choices()],
    output:
        "results/search/worker_{worker}.json",
    log:
        "logs/search/worker_{worker}.log",
    wildcard_constraints:
        worker=r"\d+",
    # A worker that was killed is started once more: another one may have its trial by then, and the call ends well.
    # On a cluster as often as its profile says.
    retries: 1 if IS_LOCAL else None
    threads: cores_of_worker()
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
        report(
            "results/search/report.html",
            caption="../report/search.rst",
            category="Search",
            labels={"page": "trials and the best settings"},
        ),
    log:
        "logs/search/search.log",
    params:
        script=script("search"),
        settings=digest_of("params.yaml"),
        code=digest.of_code("search"),
    message:
        "search: the table of all trials, a page about them, the best params.yaml"
    shell:
        "python {params.script} --workers {input.workers} --out results/search --log {log}"
