# The second stage of the cascade sees what 3d_lowres segmented: of every case by the fold that has not seen it, so
# all folds of 3d_lowres are trained and validated before one of the cascade.
CASCADE = "3d_cascade_fullres"
FIRST_STAGE = "3d_lowres"

if CASCADE in PARAMS.configurations:
    if PARAMS.splits.file is not None and Path(PARAMS.splits.file).is_file():
        try:
            given_splits.require_each_validated_once(Path(PARAMS.splits.file))
        except SegpipeError as error:
            raise WorkflowError(str(error))

    rule preprocess_cascade:
        input:
            cases=rules.check.output.cases,
            plan=rules.plan.output,
            validations=expand(
                rules.validate.output,
                configuration=FIRST_STAGE,
                fold=range(PARAMS.splits.n_folds),
                checkpoint=CHECKPOINT,
            ),
        output:
            f"{PREPARED}/{CASCADE}/manifest.json",
        log:
            f"logs/preprocess/{CASCADE}.log",
        threads: 8
        params:
            script=script("preprocess_cascade"),
            previous=expand(
                "results/{configuration}/fold_{fold}/validation_{checkpoint}",
                configuration=FIRST_STAGE,
                fold=range(PARAMS.splits.n_folds),
                checkpoint=CHECKPOINT,
            ),
            code=digest.of_code("preprocess_cascade"),
        message:
            f"preprocess: {CASCADE}, with what {FIRST_STAGE} segmented"
        shell:
            f"python {{params.script}} --configuration {CASCADE} --cases {{input.cases}} --plan {{input.plan}}"
            " --previous {params.previous} --out {output} --log {log}"
