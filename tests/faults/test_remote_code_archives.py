"""Data that brings code, or that leads elsewhere: scripts, archives, links, pipes. Refused by name; nothing is
unpacked, nothing is written but the run, and what a link leads to is read by nobody.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from holdfast.cli.main import main
from holdfast.data import folders
from holdfast.data.sources import read_rows
from holdfast.errors import DataError
from tests.faults.commands import Ended, copied, holdfast, record_of, stage
from tests.faults.whole_runs import rows_file

SECRET = "not-for-anybody-else"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a file of rows."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows_file(folder / "rows.jsonl", 8)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A file outside of the folder."""
    file = tmp_path / "elsewhere" / "keys.jsonl"
    file.parent.mkdir()
    file.write_text(json.dumps({"prompt": SECRET, "chosen": SECRET, "rejected": "b"}) + f"\n{SECRET}\n")
    return file


def everything(folder: Path) -> dict[str, bytes]:
    """All that lies in a folder."""
    return {
        str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()
    }


def refused(start: Path, source: Path, tmp_path: Path) -> str:
    """Why a source is refused, by runs and by check; nothing has changed on the disk."""
    before = everything(tmp_path)
    ended: list[Ended] = [
        stage("align", start, source, tmp_path / "run", "data.validation=lenient"),
        stage("sft", start, source, tmp_path / "run"),
        holdfast("check", source),
    ]
    assert [one.code for one in ended] == [2, 2, 2]
    assert len({one.error for one in ended}) == 1
    assert everything(tmp_path) == before
    assert SECRET not in ended[0].error
    return ended[0].error


# ---- archives


def zipped(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, '{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    return content.getvalue()


def tarred(mode: str, *names: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 2
            archive.addfile(entry, io.BytesIO(b"{}"))
        for kind, name in ((tarfile.SYMTYPE, "link.jsonl"), (tarfile.LNKTYPE, "hard.jsonl")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "/etc/passwd"
            archive.addfile(link)
    return content.getvalue()


NAMES = ("../outside.jsonl", "/tmp/outside.jsonl", "rows.jsonl")
ARCHIVES: dict[str, Callable[[], bytes]] = {
    "rows.zip": lambda: zipped(*NAMES),
    "rows.tar": lambda: tarred("w", *NAMES),
    "rows.tar.gz": lambda: tarred("w:gz", *NAMES),
    "rows.tgz": lambda: tarred("w:gz", *NAMES),
    "rows.tar.bz2": lambda: tarred("w:bz2", *NAMES),
    "rows.tar.xz": lambda: tarred("w:xz", *NAMES),
    "rows.jsonl.zst": lambda: b"\x28\xb5\x2f\xfd",
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_is_not_unpacked(start: Path, data: Path, tmp_path: Path, name: str) -> None:
    archive = data / name
    archive.write_bytes(ARCHIVES[name]())
    for source in (archive, data):  # alone, and among rows that could be read
        assert f"'{archive}' is an archive by its name, which is not unpacked" in refused(
            start, source, tmp_path
        )


@pytest.mark.parametrize("name", ["rows.zip", "rows.tar", "rows.tar.bz2", "rows.tar.xz"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_an_archive_under_another_name_is_not_read(
    start: Path, tmp_path: Path, name: str, suffix: str
) -> None:
    file = tmp_path / f"rows{suffix}"
    file.write_bytes(ARCHIVES[name]())
    assert f"{file}: not text, but " in refused(start, file, tmp_path)


def test_a_tar_within_gzip_under_the_name_of_rows(start: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(tarred("w:gz", *NAMES))
    assert f"{file}: not text, but a tar archive" in refused(start, file, tmp_path)
    file.write_bytes(gzip.compress(gzip.compress(b"{}")))
    assert "packed by gzip" in refused(start, file, tmp_path)


# ---- links


def test_links_that_lead_out_of_the_folder(start: Path, data: Path, elsewhere: Path, tmp_path: Path) -> None:
    for link, target in (
        ("more.jsonl", elsewhere),
        ("more.jsonl", Path("../elsewhere/keys.jsonl")),
        ("deep", elsewhere.parent),
        ("deep/more.jsonl", elsewhere),
        ("up", Path("..")),
    ):
        path = data / link
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(target)
        words = refused(start, data, tmp_path)
        assert f"'{path}' is a link out of its folder, to '{(path.parent / target).resolve()}'" in words
        path.unlink()


def test_links_that_lead_nowhere(start: Path, data: Path, tmp_path: Path) -> None:
    for target in ("nowhere.jsonl", "more.jsonl"):  # the second is itself
        (data / "more.jsonl").symlink_to(target)
        assert f"'{data / 'more.jsonl'}' is a link that leads nowhere" in refused(start, data, tmp_path)
        (data / "more.jsonl").unlink()


def test_links_within_the_folder_are_followed(start: Path, data: Path, tmp_path: Path) -> None:
    (data / "again.jsonl").symlink_to("rows.jsonl")
    (data / "itself").symlink_to(".")
    (data / "notes.txt").symlink_to("/etc/hostname")  # nobody reads it
    ended = stage("align", start, data, tmp_path / "run")
    assert ended.code == 0, ended.error
    assert record_of(tmp_path / "run")["data"]["rows"] == 16
    # and what a user names by a link is what it leads to
    (tmp_path / "link").symlink_to(data)
    assert len(list(read_rows(tmp_path / "link"))) == 16


def test_the_hubs_cache_is_links_and_is_read(tmp_path: Path) -> None:
    kept = tmp_path / "datasets--me--mine"
    snapshot = kept / "snapshots" / ("a" * 40) / "data"
    snapshot.mkdir(parents=True)
    (kept / "blobs").mkdir()
    rows_file(kept / "blobs" / "1234", 3)
    (snapshot / "train.jsonl").symlink_to("../../../blobs/1234")
    for folder in (snapshot, snapshot.parent):
        assert len(list(read_rows(folder))) == 3
    (snapshot / "more.jsonl").symlink_to("/etc/passwd")
    with pytest.raises(DataError, match="link out of its folder"):
        read_rows(snapshot)


# ---- what is no rows


def test_hidden_files_are_no_rows(start: Path, data: Path, tmp_path: Path) -> None:
    """What a Mac, a notebook and git leave behind."""
    for name in (
        "._rows.jsonl",
        ".ipynb_checkpoints/rows-checkpoint.jsonl",
        "__MACOSX/._rows.jsonl",
        ".git/a.json",
    ):
        (data / name).parent.mkdir(exist_ok=True)
        (data / name).write_bytes(b"\0\5\x16\7")
    ended = stage("align", start, data, tmp_path / "run")
    assert ended.code == 0, ended.error
    assert record_of(tmp_path / "run")["data"]["check"]["formats"] == {
        f"{data / 'rows.jsonl'}": "preference_text"
    }


def test_what_a_split_leaves_out_is_not_minded(data: Path) -> None:
    (data / "rows.jsonl").rename(data / "train.jsonl")
    (data / "test.zip").write_bytes(zipped("a"))
    assert len(list(read_rows(data, "train"))) == 8
    with pytest.raises(DataError, match=r"test\.zip' is an archive"):
        read_rows(data)
    with pytest.raises(DataError, match=r"no file in .* starts with 'test'"):
        read_rows(data, "test")


def test_pipes_and_devices_are_no_files(start: Path, data: Path, tmp_path: Path) -> None:
    """Rows are read twice; a pipe gives them once, and would be taken for the one before it."""
    os.mkfifo(tmp_path / "rows.jsonl")
    for source in (tmp_path / "rows.jsonl", Path("/dev/zero")):
        assert f"'{source}' is a pipe or a device" in refused(start, source, tmp_path)
    os.mkfifo(data / "more.jsonl")
    with pytest.raises(DataError, match="pipe or a device"):
        list(read_rows(data))


# ---- code


@pytest.mark.parametrize("with_rows", [True, False])
def test_a_loading_script_is_not_run(start: Path, data: Path, tmp_path: Path, with_rows: bool) -> None:
    mark = tmp_path / "mark"
    script = data / "data.py"
    script.write_text(f"open({str(mark)!r}, 'w')")
    if not with_rows:
        (data / "rows.jsonl").unlink()
    assert f"'{script}' is a loading script, and no code of a data set is run" in refused(
        start, data, tmp_path
    )
    assert not mark.exists()


def test_a_script_that_loads_nothing_is_left_alone(start: Path, data: Path, tmp_path: Path) -> None:
    (data / "clean.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    ended = stage("align", start, data, tmp_path / "run")
    assert ended.code == 0, ended.error
    assert not (tmp_path / "mark").exists()


def test_a_loading_script_on_the_hub_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: object, **options: object) -> None:
        raise RuntimeError("Dataset scripts are no longer supported, but found mine.py")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(DataError, match=r"'me/mine' cannot be loaded: Dataset scripts .*mine\.py"):
        read_rows("me/mine")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", {"_data_files": [{"filename": "../elsewhere/keys.jsonl"}]}),
        ("state.json", {"_data_files": [{"filename": "/etc/passwd"}]}),
        ("dataset_dict.json", {"splits": ["../elsewhere"]}),
    ],
)
def test_a_saved_data_set_names_its_own_files_alone(
    start: Path, elsewhere: Path, tmp_path: Path, name: str, content: dict[str, object]
) -> None:
    folder = tmp_path / "saved"
    datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]).save_to_disk(folder)
    (folder / name).write_text(json.dumps(content))
    assert "as a part of itself; its parts are names of files in its folder" in refused(
        start, folder, tmp_path
    )


@pytest.mark.parametrize("content", ["", "{", "[]", "5", "{}", '{"_data_files": 5}', "[" * 100_000])
@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json", "dataset_info.json"])
def test_a_saved_data_set_that_is_damaged(tmp_path: Path, name: str, content: str) -> None:
    folder = tmp_path / "saved"
    datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]).save_to_disk(folder)
    (folder / name).write_text(content)
    if name == "dataset_info.json" and content.startswith("{") and content.endswith("}"):
        # nothing in it is needed
        assert len(list(read_rows(folder))) == 1
        return
    with pytest.raises(DataError, match=f"the data set saved in '{folder}' cannot be loaded"):
        read_rows(folder)


@pytest.mark.parametrize(
    "source",
    [
        "a\0b.jsonl",
        "x" * 300 + ".jsonl",
        "a/" * 3000 + "x.jsonl",
        "~nobody-of-this-name/x.jsonl",
        "",
        " ",
        "\n",
    ],
)
def test_names_that_no_file_can_have(start: Path, tmp_path: Path, source: str) -> None:
    for ended in (
        stage("align", start, source, tmp_path / "run"),
        stage("align", source, tmp_path, tmp_path / "run"),
    ):
        assert ended.code == 2
        assert len(ended.error) < 20_000


def test_what_a_terminal_would_obey_is_shown_as_escapes(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the name of a model's file: as the last line of defence, whatever the message."""
    folder = copied(start, tmp_path / "mo\x1b[2Jdel")
    (folder / "config.json").write_text("[]")
    rows = rows_file(tmp_path / "rows.jsonl", 3)
    monkeypatch.setattr(sys, "argv", ["holdfast", "check", str(rows), "--model", str(folder)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert "mo\\x1b[2Jdel" in printed
    assert all(line.isprintable() for line in printed.splitlines())


def test_every_kind_that_is_refused_has_one_list() -> None:
    """A suffix that is read is on no list of what is not."""
    assert not folders.ARCHIVES & folders.PICKLES
    assert not (folders.ARCHIVES | folders.PICKLES) & set(folders.READERS)
