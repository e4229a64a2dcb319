# From the raw files to the list of cases. Only `check` names raw files; later rules depend on what it found.
if DATASET == GENERATED:

    rule phantoms:
        output:
            files_of_dataset(),
        log:
            "logs/phantoms.log",
        params:
            script=script("phantoms"),
            cfg=settings("phantoms"),
            code=digest.of_code("phantoms"),
        message:
            "phantoms: generating the dataset"
        shell:
            f"python {{params.script}} --out {GENERATED} --log {{log}}"

elif download.is_missing(Path(DATASET), PARAMS.download):

    # There is no such rule once the folder is there: nothing but its absence makes Snakemake download it.
    rule download:
        output:
            f"{DATASET}/dataset.json",
        log:
            "logs/download.log",
        params:
            script=script("download"),
        message:
            "download: {PARAMS.dataset_name}"
        shell:
            f"python {{params.script}} --dataset {DATASET} --log {{log}}"


rule check:
    input:
        files_of_dataset(),
        watch_raw_files,
    output:
        cases=f"{PREPARED}/cases.json",
        page=report(
            f"{PREPARED}/check.html",
            caption="../report/check.rst",
            category="Data",
            labels={"page": "every case, and what was found"},
        ),
    log:
        "logs/check.log",
    # A cluster's profile has failed jobs retried. What is wrong with files, or settings (plan, splits), stays wrong.
    retries: 0
    threads: 8
    params:
        script=script("check"),
        cfg=settings("dataset", "check", "splits.n_folds"),
        code=digest.of_code("check"),
    message:
        "check: reading every file of {params.cfg[dataset]}"
    shell:
        "python {params.script} --dataset {params.cfg[dataset]:q} --out {output.cases} --log {log}"
