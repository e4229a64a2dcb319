# From the validated configurations to one table per fold.
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
