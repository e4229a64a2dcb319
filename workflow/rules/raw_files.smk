# What lies in the raw dataset. Only the rules in dataset.smk name these files.


def raw_files():
    """Every file that the check reads: those that will be generated, or those that are there.

    What a download brings is known only afterwards, and a list that grew would redo everything: dataset.json stands for
    a dataset that will be downloaded, and for one that is as it was downloaded.
    """
    if DATASET == GENERATED:
        return [f"{DATASET}/{name}" for name in phantoms.files(PARAMS.phantoms)]
    if download.is_missing(Path(DATASET), PARAMS.download) or download.is_untouched(
        Path(DATASET)
    ):
        return [f"{DATASET}/dataset.json"]
    if not Path(DATASET, "dataset.json").is_file():
        raise WorkflowError(no_dataset())
    return [str(file) for file in dataset.files(Path(DATASET))]


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
