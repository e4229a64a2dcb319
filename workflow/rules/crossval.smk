# All folds together: what is removed from segmentations, and the table over all cases.
rule postprocess:
    input:
        cases=rules.check.output.cases,
        summaries=expand(rules.ensemble.output.summary, fold=PARAMS.folds),
        segmentations=expand(rules.ensemble.output.segmentations, fold=PARAMS.folds),
        choice=rules.choose.output if PARAMS.predict.models == "best" else [],
    output:
        report(
            "results/crossval/postprocessing.json",
            caption="../report/postprocessing.rst",
            category="Cross-validation",
            labels={"table": "postprocessing"},
        ),
    log:
        "logs/postprocess.log",
    threads: 8
    params:
        script=script("postprocess"),
        members=rules.choose.params.members,
        cfg=settings(
            "configurations",
            "folds",
            "ensemble",
            "postprocess",
            "predict.models",
            "evaluate.nsd_tolerance_mm",
            "evaluate.lesion_match",
            "evaluate.lesion_connectivity",
        ),
        code=digest.of_code("postprocess"),
    message:
        "postprocess: what is better removed from segmentations"
    shell:
        "python {params.script} --cases {input.cases} --summaries {input.summaries}"
        " --validations {params.members} --of {params.cfg[predict.models]} --out {output} --log {log}"


rule crossval:
    input:
        cases=rules.check.output.cases,
        summaries=expand(rules.ensemble.output.summary, fold=PARAMS.folds),
        postprocessing=rules.postprocess.output,
    output:
        summary=report(
            "results/crossval/summary.json",
            caption="../report/summary.rst",
            category="Cross-validation",
            labels={"table": "all cases, means, intervals"},
        ),
        metrics="results/metrics.json",
    log:
        "logs/crossval.log",
    params:
        script=script("crossval"),
        cfg=settings(
            "folds",
            "splits.group",
            "evaluate.bootstrap_resamples",
            "evaluate.bootstrap_seed",
            "evaluate.confidence_level",
        ),
        code=digest.of_code("crossval"),
    message:
        "crossval: all folds together"
    shell:
        "python {params.script} --cases {input.cases} --summaries {input.summaries}"
        " --postprocessing {input.postprocessing} --out {output.summary} --metrics {output.metrics} --log {log}"
