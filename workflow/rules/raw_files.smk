# What lies in the raw dataset. Only the rules in dataset.smk name these files.


def raw_files():
    """Every file of the raw dataset: those that will be generated, or those that are there."""
    if DATASET == GENERATED:
        return [f"{DATASET}/{name}" for name in phantoms.files(PARAMS.phantoms)]
    if not Path(DATASET, "dataset.json").is_file():
        raise WorkflowError(no_dataset())
    folders = ("imagesTr", "labelsTr", "imagesTs")
    images = [
        file for folder in folders for file in visible_files(Path(DATASET, folder))
    ]
    tables = [str(table) for table in [Path(DATASET, "cases.tsv")] if table.is_file()]
    return [f"{DATASET}/dataset.json", *tables, *images]


def visible_files(folder):
    """The regular files of a folder, sorted; macOS leaves hidden ones beside them."""
    files = folder.iterdir() if folder.is_dir() else []
    return sorted(str(file) for file in files if file.is_file() and file.name[0] != ".")


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
    return any(file.startswith(f"{DATASET}/imagesTs/") for file in raw_files())
