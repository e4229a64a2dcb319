# What lies in the raw dataset. Only the rules in dataset.smk name these files.


def raw_files():
    """Every file that the check reads: those that will be generated, or those that are there."""
    if DATASET == GENERATED:
        return [f"{DATASET}/{name}" for name in phantoms.files(PARAMS.phantoms)]
    if not Path(DATASET, "dataset.json").is_file():
        raise WorkflowError(no_dataset())
    return [os.path.join(DATASET, file) for file in dataset.files(Path(DATASET))]


def no_dataset():
    """What to do where `dataset` of params.yaml leads nowhere."""
    missing = DATASET if not Path(DATASET).is_dir() else f"{DATASET}/dataset.json"
    return problem(
        "no dataset",
        where="params.yaml: dataset",
        found=f"{missing} does not exist",
        expected="a folder with dataset.json, imagesTr and labelsTr (nnU-Net raw or Decathlon layout)",
        cure=f"correct the path, or set it to {GENERATED}, which is generated",
    )


def has_test_images():
    """Whether there is anything to predict."""
    return (
        PARAMS.phantoms.n_test > 0
        if DATASET == GENERATED
        else dataset.has_test_cases(Path(DATASET))
    )
