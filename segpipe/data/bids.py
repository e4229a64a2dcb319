"""A BIDS dataset whose derivative has label maps, as a dataset in nnU-Net's raw layout.

Images are those of the BIDS dataset, label maps those of the derivative, in the space of the images. Names of files and
tables follow the BIDS specification: entities `key-value` joined by underscores, then a suffix; `dseg.tsv` with columns
`index` and `name`; `participants.tsv`.
"""

import gzip
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

from segpipe import digest
from segpipe.data import case_table
from segpipe.errors import SegpipeError, problem, raise_all

log = getLogger(__name__)

ENDINGS = (".nii.gz", ".nii")
OF_DERIVATIVES = ("space", "res", "den", "desc", "seg", "label", "atlas", "hemi")  # entities that no raw image has


@dataclass(frozen=True)
class Source:
    """What is taken from a BIDS dataset.

    derivative : name of the folder in derivatives/ with the label maps
    suffixes : of the images, one per channel: T1w, T2w
    label_suffix : dseg, or mask for a single class
    label_desc : entity `desc` of the label maps, where there are several kinds
    """

    root: Path
    derivative: str
    suffixes: list[str]
    label_suffix: str
    label_desc: str | None

    @property
    def labels(self) -> Path:
        """The folder of the label maps."""
        return self.root / "derivatives" / self.derivative


@dataclass(frozen=True)
class File:
    """An image by its name."""

    path: Path
    entities: dict[str, str]
    suffix: str

    @property
    def case(self) -> str:
        """Subject and session: sub-01_ses-02."""
        return "_".join(f"{key}-{self.entities[key]}" for key in ("sub", "ses") if key in self.entities)

    def belongs_to(self, label: "File") -> bool:
        """Whether run, acquisition and the like are the same, as far as the names of both say it."""
        return all(
            label.entities.get(key, value) == value for key, value in self.entities.items() if key not in OF_DERIVATIVES
        )


def convert(source: Source, out: Path) -> None:
    """Write the dataset `out`: files are linked where the file system can, else copied; .nii are compressed.

    Sessions with every image and a label map are training cases, those without a label map test cases. cases.tsv has
    the subject as `patient` and the columns of participants.tsv.
    Raises SegpipeError where folders, images or the table of labels are missing or ambiguous, or `out` exists.
    """
    if out.exists():
        raise _error("the dataset is there already", out, "a folder or file of that name", "nothing", "remove it")
    maps = _label_maps(source)
    names = _label_names(source)
    training, test = _cases(source, maps)
    with digest.new_folder(out) as new:
        for folder, cases in (("imagesTr", training), ("imagesTs", test)):
            for case, files in cases.items():
                for channel, file in enumerate(files):
                    _place(file.path, new / folder / f"{case}_{channel:04d}.nii.gz")
        for case, label in maps.items():
            _place(label.path, new / "labelsTr" / f"{case}.nii.gz")
        digest.write_json(new / "dataset.json", _description(source, names, len(training)))
        digest.write_text(new / case_table.NAME, _cases_tsv(source.root, [*training, *test]))
    log.info("%s: %d training and %d test cases", out, len(training), len(test))


def _cases(source: Source, maps: dict[str, File]) -> tuple[dict[str, list[File]], dict[str, list[File]]]:
    """The images of training and test cases, one per channel."""
    images: dict[str, list[File]] = {}
    for file in _files(source.root, source.suffixes):
        images.setdefault(file.case, []).append(file)
    problems: list[str] = []
    training, test = {}, {}
    for case in sorted(maps):
        training[case], found = _choose(source, case, images.get(case, []), maps[case])
        problems += found
    raise_all(f"{source.root} cannot be used", problems)
    for case in sorted(images.keys() - maps.keys()):
        chosen, found = _choose(source, case, images[case], None)
        if found:
            log.info("%s has no label map and is left out: it has not one image per channel", case)
        else:
            test[case] = chosen
    return training, test


def _choose(source: Source, case: str, images: list[File], label: File | None) -> tuple[list[File], list[str]]:
    """The image of each channel that belongs to the label map, and what is wrong with that."""
    chosen, problems = [], []
    for suffix in source.suffixes:
        found = [image for image in images if image.suffix == suffix and (label is None or image.belongs_to(label))]
        if len(found) != 1:
            problems.append(
                problem(
                    "not one image per channel",
                    where=f"{source.root}, case {case}",
                    found=", ".join(image.path.name for image in found) or f"no {suffix} image",
                    expected=f"one {suffix} image" + (f" that goes with {label.path.name}" if label else ""),
                    cure="take away what is not meant, or name other suffixes",
                )
            )
        chosen += found[:1]
    return chosen, problems


def _label_maps(source: Source) -> dict[str, File]:
    """The label map of each case."""
    if not source.labels.is_dir():
        raise _error(
            "no such derivative", source.labels, "no folder", "a folder with label maps", "correct --derivative"
        )
    files = [
        file
        for file in _files(source.labels, [source.label_suffix])
        if source.label_desc in (None, file.entities.get("desc"))
    ]
    desc = f"desc-{source.label_desc}_" if source.label_desc else ""
    if not files:
        expected = f"sub-*_{desc}{source.label_suffix}.nii.gz"
        raise _error("no label maps", source.labels, "none", expected, "correct --label-suffix and --label-desc")
    maps: dict[str, File] = {}
    problems = []
    for file in files:
        other = maps.setdefault(file.case, file)
        if other is not file:
            problems.append(
                problem(
                    "several label maps",
                    where=f"{source.labels}, case {file.case}",
                    found=f"{other.path.name}, {file.path.name}",
                    expected="one",
                    cure="choose with --label-desc, or take away what is not meant",
                )
            )
    raise_all(f"{source.labels} cannot be used", problems)
    return maps


def _files(root: Path, suffixes: list[str]) -> list[File]:
    """NIfTI files of subjects with one of these suffixes, sorted."""
    found = []
    for path in sorted(root.glob("sub-*/**/sub-*.nii*")):
        ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), None)
        *entities, suffix = path.name.removesuffix(ending or "").split("_")
        if ending and suffix in suffixes:
            pairs = [entity.partition("-") for entity in entities]
            found.append(File(path, {key: value for key, _, value in pairs}, suffix))
    return found


def _label_names(source: Source) -> dict[str, int]:
    """The classes of the table of labels; of a mask without one, a class with the name of its `desc`."""
    wanted = [f"{source.label_suffix}.tsv"]
    if source.label_desc:
        wanted.insert(0, f"desc-{source.label_desc}_{source.label_suffix}.tsv")
    tables = [folder / name for name in wanted for folder in (source.labels, source.root) if (folder / name).is_file()]
    if not tables and source.label_suffix == "mask":
        return {"background": 0, source.label_desc or "mask": 1}
    if not tables:
        raise _error(
            "no table of labels", source.labels, f"no {' or '.join(wanted)}", "columns index and name", "write one"
        )
    rows = _table(tables[0])
    try:
        classes = [(row["name"], int(row["index"])) for row in rows if int(row["index"]) > 0]
    except (KeyError, ValueError) as error:
        found = f"{type(error).__name__}: {error}"
        raise _error("no table of labels", tables[0], found, "columns index and name", "correct it") from None
    names = [name for name, _ in classes]
    if len(set(names)) < len(names) or not names:
        raise _error("unusable names of labels", tables[0], ", ".join(names) or "none", "different names", "correct it")
    return {"background": 0, **dict(classes)}


def _table(path: Path) -> list[dict[str, str]]:
    """The rows of a BIDS table; n/a is an empty value. Raises SegpipeError where it is no text in UTF-8."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _error("an unreadable table", path, error, "text in UTF-8", "save it as UTF-8") from None
    lines = [line.split("\t") for line in text.splitlines() if line.strip()]
    return [
        {name: "" if value == "n/a" else value for name, value in zip(lines[0], line, strict=False)}
        for line in lines[1:]
    ]


def _cases_tsv(root: Path, cases: list[str]) -> str:
    """Subject and what participants.tsv says of it, for each case."""
    path = root / "participants.tsv"
    people = {row["participant_id"]: row for row in (_table(path) if path.is_file() else []) if "participant_id" in row}
    columns = list(dict.fromkeys(name for row in people.values() for name in row))
    columns = [name for name in columns if name not in ("participant_id", "case", "patient", case_table.ANNOTATED)]
    lines = [["case", "patient", *columns]]
    for case in cases:
        subject = case.partition("_")[0]
        lines.append([case, subject, *(people.get(subject, {}).get(name, "") for name in columns)])
    return "".join("\t".join(line) + "\n" for line in lines)


def _description(source: Source, names: dict[str, int], n_training: int) -> dict[str, object]:
    return {
        "channel_names": {str(channel): suffix for channel, suffix in enumerate(source.suffixes)},
        "labels": names,
        "numTraining": n_training,
        "file_ending": ".nii.gz",
    }


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    if not source.is_file():
        raise _error("a link that leads nowhere", source, "no content", "the file itself", "git annex get it")
    if source.name.endswith(".gz"):
        digest.link(source.resolve(), target)
    else:
        with digest.new_file(target) as temporary:
            temporary.write_bytes(gzip.compress(source.read_bytes(), 6, mtime=0))


def _error(what: str, where: object, found: object, expected: object, cure: str) -> SegpipeError:
    return SegpipeError(problem(what, where=where, found=found, expected=expected, cure=cure))
