# One fold, end to end:      snakemake --cores 8 results/fold_0/summary.json
# Everything in params.yaml: snakemake --cores 8


include: "workflow/Snakefile"


# Here and not in workflow/Snakefile: an included file never sets the default target.
rule all:
    default_target: True
    input:
        TARGETS,
