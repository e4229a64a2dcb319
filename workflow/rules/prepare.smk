# From the list of cases to what the training reads.
rule fingerprint:
    input:
        cases=rules.check.output.cases,
    output:
        f"{PREPARED}/fingerprint.json",
    log:
        "logs/fingerprint.log",
    threads: 8
    params:
        script=script("fingerprint"),
        code=digest.of_code("fingerprint"),
    message:
        "fingerprint: spacings, shapes and intensities"
    shell:
        "python {params.script} --cases {input.cases} --out {output} --log {log}"


def digest_of(path):
    """Of a file that the settings name. None where it is absent: Snakemake says that of a missing input."""
    return digest.of_file(Path(path)) if path and Path(path).is_file() else None


rule plan:
    input:
        cases=rules.check.output.cases,
        fingerprint=rules.fingerprint.output,
        file=PARAMS.plan.file or [],
    output:
        f"{PREPARED}/plan.json",
    log:
        "logs/plan.log",
    retries: 0
    params:
        script=script("plan"),
        cfg=settings("plan", "configurations"),
        file=digest_of(PARAMS.plan.file),
        code=digest.of_code("plan"),
    message:
        "plan: from the fingerprint to patch, batch and network"
    shell:
        "python {params.script} --cases {input.cases} --fingerprint {input.fingerprint}"
        " --out {output} --log {log}"


rule splits:
    input:
        cases=rules.check.output.cases,
        given=PARAMS.splits.file or [],
    output:
        f"{PREPARED}/splits.json",
    log:
        "logs/splits.log",
    retries: 0
    params:
        script=script("splits"),
        cfg=settings("splits"),
        file=digest_of(PARAMS.splits.file),
        code=digest.of_code("splits"),
    message:
        "splits: drawing the folds"
    shell:
        "python {params.script} --cases {input.cases} --out {output} --log {log}"


# The case files beside the manifest are not declared: a job that fails or reruns keeps those that still hold.
rule preprocess:
    input:
        cases=rules.check.output.cases,
        plan=rules.plan.output,
    output:
        f"{PREPARED}/{{configuration}}/manifest.json",
    log:
        "logs/preprocess/{configuration}.log",
    wildcard_constraints:
        configuration="|".join(name for name in CONFIGURATIONS if "cascade" not in name),
    threads: 8
    params:
        script=script("preprocess"),
        code=digest.of_code("preprocess"),
    message:
        "preprocess: {wildcards.configuration}"
    shell:
        "python {params.script} --configuration {wildcards.configuration}"
        " --cases {input.cases} --plan {input.plan} --out {output} --log {log}"
