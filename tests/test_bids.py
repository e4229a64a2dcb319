"""A BIDS dataset with label maps in a derivative becomes a dataset that the check accepts."""

from pathlib import Path

import numpy as np
import pytest
from volumes import CHECK, image_array, label_array, nifti

from segpipe import digest
from segpipe.cli import main
from segpipe.data import check
from segpipe.data.cases import Cases

TABLE = "index\tname\tcolor\n0\tBackground\t#000000\n1\tgrey matter\tn/a\n2\twhite matter\tn/a\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two subjects with label maps, one of them with two sessions; a session and a subject without."""
    root = tmp_path / "bids"
    for index, session in enumerate(("sub-01", "sub-02/ses-a", "sub-02/ses-b", "sub-03", "sub-02/ses-c")):
        name = session.replace("/", "_")
        nifti(root / f"{session}/anat/{name}_acq-hr_T1w.nii.gz", image_array(index))
        nifti(root / f"{session}/anat/{name}_T2w.nii", image_array(10 + index))
        nifti(root / f"{session}/func/{name}_task-rest_bold.nii.gz", image_array())
        if index < 3:
            for desc, n_classes in (("manual", 3), ("auto", 2)):
                label = f"derivatives/labels/{session}/anat/{name}_acq-hr_space-T1w_desc-{desc}_dseg.nii.gz"
                nifti(root / label, label_array(n_classes=n_classes))
    (root / "derivatives/labels/dseg.tsv").write_text(TABLE)
    (root / "participants.tsv").write_text("participant_id\tsite\tage\nsub-02\tLeeds\tn/a\nsub-01\tYork\t40\n")
    return root


def convert(root: Path, *options: str) -> Path:
    """What the command makes."""
    out = root.parent / "raw/Dataset123_Brain"
    arguments = {"--derivative": "labels", "--suffix": "T1w,T2w", "--label-desc": "manual", "--out": str(out)}
    arguments |= dict(zip(options[::2], options[1::2], strict=True))
    given = [text for option in arguments.items() for text in option if "" not in option]
    main.main(["import-bids", str(root), *given])
    return out


def refusal(root: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        convert(root, *options)
    assert stopped.value.code == 2
    assert not [path for path in root.parent.rglob("*") if "Dataset123_Brain" in path.name]
    return capsys.readouterr().err


def test_a_derivative_becomes_a_dataset(root: Path) -> None:
    out = convert(root)
    assert digest.read_json(out / "dataset.json") == {
        "channel_names": {"0": "T1w", "1": "T2w"},
        "labels": {"background": 0, "grey matter": 1, "white matter": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    assert (out / "cases.tsv").read_text().splitlines() == [
        "case\tpatient\tsite\tage",
        "sub-01\tsub-01\tYork\t40",
        "sub-02_ses-a\tsub-02\tLeeds\t",
        "sub-02_ses-b\tsub-02\tLeeds\t",
        "sub-02_ses-c\tsub-02\tLeeds\t",
        "sub-03\tsub-03\t\t",
    ]


def test_the_check_accepts_it_and_knows_its_patients(root: Path) -> None:
    out = convert(root)
    check.check(out, root.parent / "cases.json", CHECK, 2)
    cases = Cases.read(root.parent / "cases.json", out)
    assert (cases.training, cases.test) == (["sub-01", "sub-02_ses-a", "sub-02_ses-b"], ["sub-02_ses-c", "sub-03"])
    assert cases.entry("sub-02_ses-b")["attributes"]["patient"] == "sub-02"
    read = cases.read_image("sub-02_ses-b").array
    np.testing.assert_array_equal(read, [image_array(2).T, image_array(12).T])
    np.testing.assert_array_equal(cases.read_label("sub-02_ses-b"), label_array().T)


def test_files_are_not_copied(root: Path) -> None:
    image = convert(root) / "imagesTr/sub-01_0000.nii.gz"
    assert image.samefile(root / "sub-01/anat/sub-01_acq-hr_T1w.nii.gz")


def test_a_mask_needs_no_table(root: Path) -> None:
    for path in (root / "derivatives").rglob("*desc-auto_dseg.nii.gz"):
        path.rename(path.with_name(path.name.replace("desc-auto_dseg", "label-lesion_desc-tumour_mask")))
    out = convert(root, "--label-suffix", "mask", "--label-desc", "tumour")
    assert digest.read_json(out / "dataset.json")["labels"] == {"background": 0, "tumour": 1}


def test_a_table_for_the_kind_of_labels_comes_first(root: Path) -> None:
    (root / "derivatives/labels/desc-manual_dseg.tsv").write_text("index\tname\n1\thead\n2\tbody\n")
    labels = digest.read_json(convert(root) / "dataset.json")["labels"]
    assert labels == {"background": 0, "head": 1, "body": 2}


def test_without_participants(root: Path) -> None:
    (root / "participants.tsv").unlink()
    assert (convert(root) / "cases.tsv").read_text().startswith("case\tpatient\nsub-01\tsub-01\n")


def test_the_run_of_the_label_chooses_the_image(root: Path) -> None:
    anat = root / "sub-01/anat"
    (anat / "sub-01_acq-hr_T1w.nii.gz").rename(anat / "sub-01_acq-hr_run-2_T1w.nii.gz")
    nifti(anat / "sub-01_acq-hr_run-1_T1w.nii.gz", image_array(50))
    nifti(anat / "sub-01_acq-lr_run-2_T1w.nii.gz", image_array(51))
    label = next((root / "derivatives/labels/sub-01/anat").glob("*manual*"))
    label.rename(label.with_name(label.name.replace("acq-hr", "acq-hr_run-2")))
    assert (convert(root) / "imagesTr/sub-01_0000.nii.gz").samefile(anat / "sub-01_acq-hr_run-2_T1w.nii.gz")


def test_a_session_without_all_images_and_labels_is_left_out(root: Path) -> None:
    (root / "sub-03/anat/sub-03_T2w.nii").unlink()
    assert not list(convert(root).glob("imagesTs/sub-03*"))


# refused, and nothing left behind


def test_every_missing_or_ambiguous_image_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "sub-01/anat/sub-01_T2w.nii").unlink()
    nifti(root / "sub-02/ses-a/anat/sub-02_ses-a_acq-hr_run-2_T1w.nii.gz", image_array())
    text = refusal(root, capsys)
    assert "2 problems" in text
    assert "case sub-01\n  found:    no T2w image" in text
    assert "found:    sub-02_ses-a_acq-hr_T1w.nii.gz, sub-02_ses-a_acq-hr_run-2_T1w.nii.gz\n" in text


def test_several_label_maps_need_a_choice(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = refusal(root, capsys, "--label-desc", "")
    assert text.count("several label maps") == 3
    assert "choose with --label-desc" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--derivative", "other"), "no such derivative"),
        (("--label-suffix", "probseg"), "sub-*_desc-manual_probseg.nii.gz"),
        (("--label-desc", "expert"), "no label maps"),
        (("--suffix", ","), "argument --suffix: at least one"),
    ],
)
def test_options_that_lead_nowhere(
    root: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, str], said: str
) -> None:
    (root / "derivatives/labels/probseg.tsv").write_text(TABLE)
    assert said in refusal(root, capsys, *options)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (None, "no desc-manual_dseg.tsv or dseg.tsv"),
        ("index\tlabel\n1\tx\n", "KeyError: 'name'"),
        ("index\tname\none\tx\n", "invalid literal"),
        ("index\tname\n1\tx\n2\tx\n", "x, x"),
        ("", "found:    none"),
    ],
)
def test_tables_that_name_no_labels(
    root: Path, capsys: pytest.CaptureFixture[str], table: str | None, said: str
) -> None:
    path = root / "derivatives/labels/dseg.tsv"
    path.unlink() if table is None else path.write_text(table)
    assert said in refusal(root, capsys)


def test_a_table_that_is_no_text(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "participants.tsv").write_bytes("participant_id\nsub-01\n".encode("utf-16"))
    assert f"an unreadable table\n  where:    {root / 'participants.tsv'}" in refusal(root, capsys)


def test_a_link_that_leads_nowhere(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / "sub-01/anat/sub-01_acq-hr_T1w.nii.gz"
    path.unlink()
    path.symlink_to("../../.git/annex/objects/missing")
    assert f"a link that leads nowhere\n  where:    {path}" in refusal(root, capsys)


def test_a_dataset_that_is_there_is_kept(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(root)
    with pytest.raises(SystemExit):
        convert(root)
    assert "the dataset is there already" in capsys.readouterr().err
