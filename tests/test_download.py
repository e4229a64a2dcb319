"""Downloads from servers on this machine: whole, cut, resumed, wrong; and the rule that makes them."""

import hashlib
import io
import re
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from conftest import REPO, Project, run, tiny_params
from pydantic import ValidationError

from segpipe import digest
from segpipe.data import download, phantoms
from segpipe.errors import SegpipeError
from segpipe.params import Download, Phantoms

TASK = "Task91_Tiny"
NO_WAITS = (0.0, 0.0)


class Server(ThreadingHTTPServer):
    """A server of one archive.

    cut_after : bytes after which the connections are cut, one number per request; none left: all is sent
    errors : statuses of the first requests
    ranges : whether it answers to ranges
    asked : the Range header of each request, None where there was none
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges = content, True
        self.cut_after: list[int] = []
        self.errors: list[int] = []
        self.asked: list[str | None] = []

    def settings(self, content: bytes | None = None) -> Download:
        md5 = hashlib.md5(self.content if content is None else content).hexdigest()
        return Download(url=f"http://127.0.0.1:{self.server_port}/msd", md5={TASK: md5})


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.headers.get("Range"))
        if self.server.errors or self.path != f"/msd/{TASK}.tar":
            return self.send_error(self.server.errors.pop(0) if self.server.errors else 404)
        start, total = self.start(), len(self.server.content)
        if start >= total:
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        body = self.server.content[start:]
        self.wfile.write(body[: self.server.cut_after.pop(0)] if self.server.cut_after else body)

    def start(self) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        return int(asked[1]) if asked and self.server.ranges else 0

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


def archive(folder: Path) -> bytes:
    """The generated phantoms as a Decathlon task, with what macOS adds."""
    source = folder / "source"
    phantoms.generate(source, Phantoms(n_train=5, n_test=1, seed=0))
    task = folder / TASK
    training = [path.name for path in sorted((source / "labelsTr").iterdir())]
    test = [path.name.replace("_0000", "") for path in (source / "imagesTs").iterdir()]
    for path in source.glob("*/*"):
        (task / path.parent.name).mkdir(parents=True, exist_ok=True)
        path.rename(task / path.parent.name / path.name.replace("_0000", ""))
    (task / "imagesTr" / f"._{training[0]}").write_bytes(b"macOS")
    description = {
        "name": "Tiny",
        "modality": {"0": "MRI"},
        "labels": {str(value): name for name, value in phantoms.LABELS.items()},
        "numTraining": len(training),
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in training],
        "test": [f"./imagesTs/{name}" for name in test],
    }
    digest.write_json(task / "dataset.json", description)
    with tarfile.open(folder / "task.tar", "w") as tar:
        tar.add(task, TASK)
    return (folder / "task.tar").read_bytes()


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return archive(tmp_path_factory.mktemp("archive"))


@pytest.fixture
def server(content: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(content) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def refusal(folder: Path, settings: Download) -> str:
    with pytest.raises(SegpipeError) as error:
        download.download(folder, settings, NO_WAITS)
    assert not folder.exists()
    return str(error.value)


def part(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.tar.part")


def test_a_task_appears_whole(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "raw" / TASK
    with caplog.at_level("INFO"):
        download.download(folder, server.settings(), NO_WAITS)
    names = [f"phantom_{index:03d}.nii.gz" for index in range(6)]
    assert files(folder) == {
        "dataset.json",
        download.RECORD,
        *(f"{kind}/{name}" for kind in ("imagesTr", "labelsTr") for name in names[:5]),
        f"imagesTs/{names[5]}",
    }
    assert nibabel.load(folder / "labelsTr" / names[0]).get_fdata().max() == 3
    assert files(tmp_path / "raw") == {f".{TASK}.lock", *(f"{TASK}/{name}" for name in files(folder))}
    size = f"{len(server.content) / 1e6:.0f}"
    assert f"{size} of {size} MB" in caplog.text
    assert "the next call predicts its 1 test images" in caplog.text


def test_a_cut_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    server.cut_after = [1000, 500]
    server.errors = [503]
    download.download(tmp_path / TASK, server.settings(), NO_WAITS)
    assert server.asked == [None, None, "bytes=1000-", "bytes=1500-"]


def test_progress_starts_the_count_of_attempts_anew(server: Server, tmp_path: Path) -> None:
    server.cut_after = [1000] * 6
    download.download(tmp_path / TASK, server.settings(), NO_WAITS)
    assert len(server.asked) == 7


def test_an_earlier_call_is_resumed(server: Server, tmp_path: Path) -> None:
    part(tmp_path / TASK).write_bytes(server.content[:2000])
    download.download(tmp_path / TASK, server.settings(), NO_WAITS)
    assert server.asked == ["bytes=2000-"]


def test_a_whole_archive_is_not_downloaded_again(server: Server, tmp_path: Path) -> None:
    part(tmp_path / TASK).write_bytes(server.content)
    download.download(tmp_path / TASK, server.settings(), NO_WAITS)
    assert server.asked == [f"bytes={len(server.content)}-"]


def test_a_server_without_ranges_begins_anew(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cut_after = [1000, 500]
    download.download(tmp_path / TASK, server.settings(), NO_WAITS)
    assert server.asked == [None, "bytes=1000-", "bytes=500-"]


@pytest.mark.parametrize("kept", [b"x" * 2000, b"x" * 10_000_000], ids=["shorter", "longer"])
def test_a_wrong_part_is_begun_anew(server: Server, tmp_path: Path, kept: bytes) -> None:
    part(tmp_path / TASK).write_bytes(kept)
    download.download(tmp_path / TASK, server.settings(), NO_WAITS)
    assert server.asked == [f"bytes={len(kept)}-", None]


def test_another_checksum_is_refused(server: Server, tmp_path: Path) -> None:
    text = refusal(tmp_path / TASK, server.settings(b"other"))
    assert f"found:    md5 {hashlib.md5(server.content).hexdigest()}" in text
    assert f"expected: md5 {hashlib.md5(b'other').hexdigest()}" in text
    assert not part(tmp_path / TASK).exists()


def test_a_file_that_is_not_there_is_not_asked_for_twice(server: Server, tmp_path: Path) -> None:
    server.errors = [404]
    assert "HTTP Error 404" in refusal(tmp_path / TASK, server.settings())
    assert len(server.asked) == 1


def test_a_server_that_fails_keeps_the_part(server: Server, tmp_path: Path) -> None:
    server.cut_after, server.errors = [], [500, 502, 503]
    part(tmp_path / TASK).write_bytes(server.content[:2000])
    assert "HTTP Error 503" in refusal(tmp_path / TASK, server.settings())
    assert part(tmp_path / TASK).read_bytes() == server.content[:2000]


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    nowhere = Download(url="http://127.0.0.1:1", md5={TASK: "0" * 32})
    assert "Connection refused" in refusal(tmp_path / TASK, nowhere)


def other_archive(**members: str) -> bytes:
    """An archive with these files; a value that begins with -> is a link."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            if text.startswith("->"):
                member.type, member.linkname = tarfile.SYMTYPE, text[2:]
            member.size = 0 if member.issym() else len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return written.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no archive", "ReadError"),
        (other_archive(**{f"{TASK}/dataset.json": "{}", "../outside": "x"}), "../outside leads outside of the folder"),
        (
            other_archive(**{f"{TASK}/dataset.json": "{}", f"{TASK}/link": "->/etc/passwd"}),
            "neither a file nor a folder",
        ),
        (other_archive(**{f"{TASK}/dataset.json": "{}", "/outside": "x"}), "/outside leads outside of the folder"),
        (other_archive(**{f"{TASK}/notes.txt": "x"}), "0 folders with a dataset.json"),
        (other_archive(**{"a/dataset.json": "{}", "b/dataset.json": "{}"}), "2 folders with a dataset.json"),
    ],
)
def test_what_is_no_task_is_refused(server: Server, tmp_path: Path, content: bytes, said: str) -> None:
    server.content = content
    assert said in refusal(tmp_path / "raw" / TASK, server.settings())
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "raw/outside").exists()


def test_a_folder_that_is_complete_is_left_alone(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        download.download(tmp_path / TASK, server.settings(), NO_WAITS)
    assert len(server.asked) == 1


def test_a_folder_is_untouched_until_something_changes(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / TASK
    assert not download.is_untouched(folder)
    download.download(folder, server.settings(), NO_WAITS)
    assert download.is_untouched(folder)
    (folder / "cases.tsv").write_text("case\n")
    assert not download.is_untouched(folder)
    (folder / "cases.tsv").unlink()
    assert download.is_untouched(folder)
    label = folder / "labelsTr/phantom_000.nii.gz"
    label.write_bytes(label.read_bytes())
    assert not download.is_untouched(folder)


def test_the_ten_tasks_are_known() -> None:
    known = download.checksums(Download(url="https://example.org", md5=None))
    assert [int(name[4:6]) for name in known] == list(range(1, 11))
    assert len(set(known.values())) == 10
    Download(url="https://example.org", md5=known)  # they have the form of checksums


@pytest.mark.parametrize(
    ("url", "md5"),
    [("ftp://example.org", None), ("https://example.org", {"Tiny": "0" * 32}), ("https://example.org", {TASK: "0"})],
)
def test_settings_that_are_no_download(url: str, md5: dict[str, str] | None) -> None:
    with pytest.raises(ValidationError):
        Download(url=url, md5=md5)


# the rule


def test_the_pipeline_downloads_its_dataset(server: Server, fresh: Project) -> None:
    """One call downloads and checks; the next one does neither, until a file changes, and finds what to predict."""
    fresh.write({**tiny_params(), "dataset": f"data/raw/{TASK}", "download": server.settings().model_dump()})
    goal = f"data/preprocessed/{TASK}/cases.json"
    server.cut_after = [5000]
    fresh.snakemake(goal)
    cases = digest.read_json(fresh.folder / goal)
    assert (len(cases["training"]), len(cases["test"])) == (5, 1)
    planned = fresh.planned()
    assert not {"download", "check"} & set(planned)
    assert planned["predict"] == 1
    label = fresh.folder / f"data/raw/{TASK}/labelsTr/phantom_000.nii.gz"
    image = nibabel.load(label)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine), label)
    assert fresh.planned(goal) == {"check": 1}


def test_a_folder_with_other_files_is_never_replaced(server: Server, fresh: Project) -> None:
    fresh.write({**tiny_params(), "dataset": f"data/raw/{TASK}", "download": server.settings().model_dump()})
    own = fresh.folder / f"data/raw/{TASK}/notes.txt"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    assert f"data/raw/{TASK}/dataset.json does not exist" in fresh.snakemake(ok=False)
    assert own.read_text() == "mine"
    assert server.asked == []


def test_dvc_has_no_stage_for_it(fresh: Project) -> None:
    """dvc.yaml is the same before and after the download."""
    fresh.write({**tiny_params(), "dataset": "data/raw/Task04_Hippocampus"})
    run([sys.executable, str(REPO / "workflow/scripts/make_dvc_yaml.py")], fresh.folder)
    stages = yaml.safe_load((fresh.folder / "dvc.yaml").read_text())["stages"]
    assert "download" not in stages
    assert "${dataset}" in stages["check"]["deps"]
