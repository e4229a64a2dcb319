# What lies in the raw dataset. Only the rules in dataset.smk name these files.
from segpipe.data import raw_files


def files_of_dataset():
    """What the check is said to read: the files that will be generated, or the tables of a dataset.

    Not its images and labels: those that were replaced by older ones Snakemake would not see, newer ones it would read
    at each call, and a download brings them when it is too late to name them. `watch_raw_files` sees to them.
    """
    if DATASET == GENERATED:
        return [f"{DATASET}/{name}" for name in phantoms.files(PARAMS.phantoms)]
    if download.is_missing(Path(DATASET), PARAMS.download):
        return [f"{DATASET}/dataset.json"]
    if not Path(DATASET, "dataset.json").is_file():
        raise WorkflowError(no_dataset())
    tables = [f"{DATASET}/{name}" for name in raw_files.TABLES]
    return [file for file in tables if os.path.isfile(file)]


def watch_raw_files(wildcards):
    """No file. A function of the input, which Snakemake calls before it decides what has to run: `check` is made to run
    where raw files are not those that it read, as `--forcerun check` would. On a cluster's nodes that is decided.
    """
    is_decided = not workflow.is_main_process or workflow.dag is None
    if is_decided or DATASET == GENERATED or not os.path.isdir(DATASET):
        return []
    try:
        others = raw_files.changed(
            Path(DATASET), Path(PREPARED, "cases.json"), logger.warning
        )
    except SegpipeError as error:
        stop(error)
    if others:
        shown = ", ".join(others[:5]) + (" ..." if len(others) > 5 else "")
        logger.warning(f"not as the check read them: {shown}; {len(others)} in all")
        workflow.dag.forcerules.add(rules.check.rule)
    return []


def no_dataset():
    """What to do where `dataset` of params.yaml leads nowhere."""
    missing = DATASET if not Path(DATASET).is_dir() else f"{DATASET}/dataset.json"
    return problem(
        "no dataset",
        where="params.yaml: dataset",
        found=f"{missing} does not exist",
        expected="a folder with dataset.json, imagesTr and labelsTr (nnU-Net raw or Decathlon layout)",
        cure=f"correct the path, or set it to {GENERATED}, which is generated, or to "
        f"data/raw/{min(download.checksums(PARAMS.download))} or the like, which is downloaded",
    )


def has_test_images():
    """Whether there is anything to predict."""
    return (
        PARAMS.phantoms.n_test > 0
        if DATASET == GENERATED
        else dataset.has_test_cases(Path(DATASET))
    )
