if has_test_images():

    rule predict:
        input:
            cases=rules.check.output.cases,
            models=expand(
                f"results/{{configuration}}/fold_{{fold}}/checkpoint_{CHECKPOINT}.pth",
                configuration=PARAMS.trained,
                fold=PARAMS.folds,
            ),
        output:
            directory("results/predictions"),
        log:
            "logs/predict.log",
        threads: 8
        resources:
            gpu=1,
        params:
            script=script("predict"),
            cfg=settings(
                "configurations",
                "folds",
                "validate.step_size",
                "validate.mirroring",
                "validate.weights",
            ),
            code=digest.of_code("predict"),
        message:
            "predict: the cases of imagesTs"
        shell:
            "python {params.script} --cases {input.cases} --models {input.models}"
            " --out {output} --log {log}"
