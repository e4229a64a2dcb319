# What came out, for people: volumes as a table, and everything on one page.
TEST_PREDICTIONS = rules.predict.output if has_test_images() else []


rule volumes:
    input:
        cases=rules.check.output.cases,
        validated=expand(rules.ensemble.output.segmentations, fold=PARAMS.folds),
        predictions=TEST_PREDICTIONS,
    output:
        report(
            "results/volumes.csv",
            caption="../report/volumes.rst",
            category="Predictions",
            labels={"table": "volumes of labels and predictions"},
        ),
    log:
        "logs/volumes.log",
    threads: 8
    params:
        script=script("volumes"),
        predictions="--predictions results/predictions" if has_test_images() else "",
        code=digest.of_code("volumes"),
    message:
        "volumes: of labels and predictions"
    shell:
        "python {params.script} --cases {input.cases} --validated {input.validated}"
        " {params.predictions} --out {output} --log {log}"


rule report:
    input:
        cases=rules.check.output.cases,
        plan=rules.plan.output,
        crossval=[
            rules.crossval.output.summary,
            rules.choose.output,
            rules.postprocess.output,
            rules.calibrate.output,
        ],
        segmentations=expand(rules.ensemble.output.segmentations, fold=PARAMS.folds),
        metrics=expand(
            rules.train.output.metrics,
            configuration=PARAMS.trained,
            fold=PARAMS.folds,
        ),
        validations=expand(
            rules.validate.output.summary,
            configuration=PARAMS.trained,
            fold=PARAMS.folds,
            checkpoint=CHECKPOINT,
        ),
        volumes=rules.volumes.output,
        predictions=TEST_PREDICTIONS,
    output:
        report(
            "results/report.html",
            caption="../report/report.rst",
            category="Report",
            labels={"page": "everything on one page"},
        ),
    log:
        "logs/report.log",
    params:
        script=script("report"),
        trainings=expand(
            "results/{configuration}/fold_{fold}",
            configuration=PARAMS.trained,
            fold=PARAMS.folds,
        ),
        predictions="--predictions results/predictions" if has_test_images() else "",
        cfg=params_yaml.of_results(PARAMS),
        code=digest.of_code("report"),
    message:
        "report: one page"
    shell:
        "python {params.script} --cases {input.cases} --plan {input.plan} --crossval {input.crossval}"
        " --trainings {params.trainings} --volumes {input.volumes} {params.predictions}"
        " --out {output} --log {log}"
