# What a resume needs lies in results/{configuration}/fold_{fold}/state/ and is not declared: it must outlive a job
# that fails, is killed or reruns. Declared is what a finished training copies out of there.
# --on-extend is in the call for DVC: a stage made for `restart` is cached, so it must not run with `continue`.
def named_files(settings):
    """Modules of the user's and pretrained weights that the settings name: a training follows from them too."""
    modules = [plugins.file_of(path) for path in settings.import_paths().values()]
    return [str(path) for path in [*modules, settings.pretrained_weights] if path]


rule train:
    input:
        cases=rules.check.output.cases,
        plan=rules.plan.output,
        splits=rules.splits.output,
        manifest=rules.preprocess.output,
        named=named_files(PARAMS.train),
    output:
        final="results/{configuration}/fold_{fold}/checkpoint_final.pth",
        best="results/{configuration}/fold_{fold}/checkpoint_best.pth",
        metrics="results/{configuration}/fold_{fold}/metrics.csv",
        progress=report(
            "results/{configuration}/fold_{fold}/progress.png",
            caption="../report/progress.rst",
            category="Training",
            labels={"configuration": "{configuration}", "fold": "{fold}"},
        ),
    log:
        "logs/train/{configuration}/fold_{fold}.log",
    threads: 8
    resources:
        gpu=PARAMS.runtime.num_gpus,
    params:
        script=script("train"),
        cfg=settings("train"),
        code=[
            digest.of_code("train"),
            PARAMS.train.full_validation.every and digest.of_code("full_validation"),
        ],
    message:
        "train: {wildcards.configuration}, fold {wildcards.fold}"
    shell:
        "python {params.script} --configuration {wildcards.configuration} --fold {wildcards.fold}"
        " --cases {input.cases} --plan {input.plan} --splits {input.splits} --manifest {input.manifest}"
        " --out results/{wildcards.configuration}/fold_{wildcards.fold}"
        " --on-extend {params.cfg[train][on_extend]} --log {log}"
