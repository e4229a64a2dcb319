# From the validated configurations to one table per fold, and from the folds to one table over all cases.
rule ensemble:
    input:
        cases=rules.check.output.cases,
        validations=expand(
            rules.validate.output,
            configuration=PARAMS.configurations,
            checkpoint=CHECKPOINT,
            allow_missing=True,
        ),
    output:
        summary="results/fold_{fold}/summary.json",
        segmentations=directory("results/fold_{fold}/segmentations"),
    log:
        "logs/ensemble/fold_{fold}.log",
    threads: 8
    params:
        script=script("ensemble"),
        members=expand(
            "results/{configuration}/fold_{fold}/validation_{checkpoint}",
            configuration=PARAMS.configurations,
            checkpoint=CHECKPOINT,
            allow_missing=True,
        ),
        cfg=settings(
            "configurations",
            "ensemble",
            "evaluate.nsd_tolerance_mm",
            "evaluate.lesion_match",
            "evaluate.lesion_connectivity",
        ),
        code=digest.of_code("ensemble"),
    message:
        "ensemble: fold {wildcards.fold}"
    shell:
        "python {params.script} --fold {wildcards.fold} --cases {input.cases}"
        " --validations {params.members} --out {output.summary} --log {log}"


rule crossval:
    input:
        expand(rules.ensemble.output.summary, fold=PARAMS.folds),
    output:
        "results/crossval/summary.json",
    log:
        "logs/crossval.log",
    params:
        script=script("crossval"),
        cfg=settings(
            "folds",
            "evaluate.bootstrap_resamples",
            "evaluate.bootstrap_seed",
            "evaluate.confidence_level",
        ),
        code=digest.of_code("crossval"),
    message:
        "crossval: all folds together"
    shell:
        "python {params.script} --summaries {input} --out {output} --log {log}"
