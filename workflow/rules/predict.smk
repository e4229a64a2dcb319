# imagesTs, with what the cross-validation says of it as far as `predict` of params.yaml asks for it.
LEARNT = {
    "choice": rules.choose.output[0] if PARAMS.predict.models == "best" else None,
    "rules": rules.postprocess.output[0] if PARAMS.predict.postprocess else None,
    "calibration": rules.calibrate.output[0] if PARAMS.predict.calibrated else None,
}
LEARNT = {name: path for name, path in LEARNT.items() if path is not None}

if has_test_images():

    rule predict:
        input:
            **LEARNT,
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
            gpu=PARAMS.runtime.num_gpus,
        params:
            script=script("predict"),
            learnt=[f"--{name} {path}" for name, path in LEARNT.items()],
            cfg=settings(
                "configurations",
                "folds",
                "validate.step_size",
                "validate.mirroring",
                "validate.precision",
                "validate.softmax_dtype",
                "validate.weights",
                "ensemble.weights",
                "predict",
            ),
            code=digest.of_code("predict"),
        message:
            "predict: the cases of imagesTs"
        shell:
            "python {params.script} --cases {input.cases} --models {input.models} {params.learnt}"
            " --out {output} --log {log}"
