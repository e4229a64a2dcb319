# `validate.checkpoint` of params.yaml is not among the params: the wildcard carries it, so another choice predicts
# into a folder of its own and the first one stays valid.
rule validate:
    input:
        cases=rules.check.output.cases,
        plan=rules.plan.output,
        splits=rules.splits.output,
        manifest=rules.preprocess.output,
        model="results/{configuration}/fold_{fold}/checkpoint_{checkpoint}.pth",
    output:
        summary="results/{configuration}/fold_{fold}/validation_{checkpoint}/summary.json",
        segmentations=directory(
            "results/{configuration}/fold_{fold}/validation_{checkpoint}/segmentations"
        ),
        softmax=directory(
            "results/{configuration}/fold_{fold}/validation_{checkpoint}/softmax"
        ),
    log:
        "logs/validate/{configuration}/fold_{fold}_{checkpoint}.log",
    threads: 8
    resources:
        gpu=PARAMS.runtime.num_gpus,
    params:
        script=script("validate"),
        cfg=settings(
            "validate.step_size",
            "validate.mirroring",
            "validate.precision",
            "validate.softmax_dtype",
            "validate.weights",
            "evaluate.nsd_tolerance_mm",
            "evaluate.lesion_match",
            "evaluate.lesion_connectivity",
        ),
        code=digest.of_code("validate"),
    message:
        "validate: {wildcards.configuration}, fold {wildcards.fold}, {wildcards.checkpoint} checkpoint"
    shell:
        "python {params.script} --configuration {wildcards.configuration} --fold {wildcards.fold}"
        " --cases {input.cases} --plan {input.plan} --splits {input.splits} --manifest {input.manifest}"
        " --model {input.model}"
        " --out results/{wildcards.configuration}/fold_{wildcards.fold}/validation_{wildcards.checkpoint}"
        " --log {log}"
