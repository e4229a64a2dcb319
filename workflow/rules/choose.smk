# Which configuration, or which of them together, the cross-validation finds best.
rule choose:
    input:
        cases=rules.check.output.cases,
        validations=expand(
            rules.validate.output,
            configuration=PARAMS.configurations,
            fold=PARAMS.folds,
            checkpoint=CHECKPOINT,
        ),
    output:
        report(
            "results/crossval/model_choice.json",
            caption="../report/model_choice.rst",
            category="Cross-validation",
            labels={"table": "choice among configurations"},
        ),
    log:
        "logs/choose.log",
    threads: 8
    params:
        script=script("choose"),
        members=expand(
            "results/{configuration}/fold_{fold}/validation_{checkpoint}",
            configuration=PARAMS.configurations,
            fold=PARAMS.folds,
            checkpoint=CHECKPOINT,
        ),
        cfg=settings(
            "configurations",
            "folds",
            "ensemble",
            "choose",
            "splits.group",
            "evaluate.bootstrap_resamples",
            "evaluate.bootstrap_seed",
            "evaluate.confidence_level",
        ),
        code=digest.of_code("choose"),
    message:
        "choose: the best of all configurations, alone or together"
    shell:
        "python {params.script} --cases {input.cases} --validations {params.members} --out {output} --log {log}"
