# How far the probabilities of all folds may be taken at their word, and the temperature that mends it.
rule calibrate:
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
            "results/crossval/calibration.json",
            caption="../report/calibration.rst",
            category="Cross-validation",
            labels={"table": "calibration"},
        ),
    log:
        "logs/calibrate.log",
    threads: 8
    params:
        script=script("calibrate"),
        members=expand(
            "results/{configuration}/fold_{fold}/validation_{checkpoint}",
            configuration=PARAMS.configurations,
            fold=PARAMS.folds,
            checkpoint=CHECKPOINT,
        ),
        cfg=settings("configurations", "folds", "ensemble", "calibrate"),
        code=digest.of_code("calibrate"),
    message:
        "calibrate: how far the probabilities may be taken at their word"
    shell:
        "python {params.script} --cases {input.cases} --validations {params.members} --out {output} --log {log}"
