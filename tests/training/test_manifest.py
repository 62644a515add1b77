"""A manifest is written last, and nothing that differs from it goes unnamed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from holdfast.errors import CheckpointError
from holdfast.training.manifest import MANIFEST, Entry, Manifest, read_manifest, verify, write_manifest

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # SHA-256 of abc, FIPS 180-2
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint-7"
    (folder / "inner" / "deep").mkdir(parents=True)
    (folder / "b.json").write_bytes(b"abc")
    (folder / "inner" / "deep" / "a.txt").write_bytes(b"")
    write_manifest(folder, 7)
    return folder


def found(folder: Path) -> list[str]:
    return [str(fault) for fault in verify(folder)]


def test_what_stands_in_it(folder: Path) -> None:
    assert (folder / MANIFEST).read_text() == (
        '{\n  "files": {\n'
        '    "b.json": {\n      "bytes": 3,\n      "sha256": "' + ABC + '"\n    },\n'
        '    "inner/deep/a.txt": {\n      "bytes": 0,\n      "sha256": "' + EMPTY + '"\n    }\n'
        '  },\n  "format": 1,\n  "step": 7\n}\n'
    )
    manifest = read_manifest(folder)
    assert manifest == Manifest(7, {"b.json": Entry(3, ABC), "inner/deep/a.txt": Entry(0, EMPTY)})
    assert manifest.bytes == 3
    assert verify(folder) == []


def test_everything_is_synced_before_the_manifest_and_it_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    order: list[tuple[str, bool]] = []
    fsync = os.fsync

    def record(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        order.append((path.relative_to(tmp_path).as_posix(), (tmp_path / MANIFEST).exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    write_manifest(tmp_path, 1)
    before, after = order[:4], order[4:]
    assert sorted(before) == [(".", False), ("b", False), ("inner", False), ("inner/a", False)]
    assert before.index(("inner/a", False)) < before.index(("inner", False)) < before.index((".", False))
    assert after == [(MANIFEST, True), (".", True)]


FAULTS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "a file is gone": (lambda f: (f / "b.json").unlink(), ["'b.json' is missing"]),
    "a file is longer": (
        lambda f: (f / "b.json").write_bytes(b"abcd"),
        ["'b.json' has 4 bytes; the manifest says 3"],
    ),
    "a file is shorter": (
        lambda f: (f / "b.json").write_bytes(b""),
        ["'b.json' has 0 bytes; the manifest says 3"],
    ),
    "a byte differs": (
        lambda f: (f / "b.json").write_bytes(b"abd"),
        ["'b.json' is damaged: its bytes do not have the manifest's SHA-256"],
    ),
    "a file is too many": (
        lambda f: (f / "inner" / "more").write_text("x"),
        ["'inner/more' is not in the manifest"],
    ),
    "a file is a folder": (
        lambda f: ((f / "b.json").unlink(), (f / "b.json").mkdir()),
        ["'b.json' is missing"],
    ),
    "a file is a link": (
        lambda f: (
            (f / "b.json").rename(f.parent / "elsewhere"),
            (f / "b.json").symlink_to(f.parent / "elsewhere"),
        ),
        ["'b.json' is a link; a checkpoint holds its own files only"],
    ),
    "a folder is a link": (
        lambda f: ((f / "inner").rename(f.parent / "away"), (f / "inner").symlink_to(f.parent / "away")),
        [
            "'inner' is a link; a checkpoint holds its own files only",
            "'inner/deep/a.txt' is missing",
        ],
    ),
    "a file is a pipe": (
        lambda f: ((f / "b.json").unlink(), os.mkfifo(f / "b.json")),
        ["'b.json' is neither a file nor a folder"],
    ),
    "the manifest is gone": (
        lambda f: (f / MANIFEST).unlink(),
        ["'manifest.json' is missing: the checkpoint was not finished, or not written by this program"],
    ),
    "the manifest is a link": (
        lambda f: ((f / MANIFEST).rename(f.parent / "m"), (f / MANIFEST).symlink_to(f.parent / "m")),
        ["'manifest.json' is a link; a checkpoint holds its own files only"],
    ),
    "the manifest is another step's": (
        lambda f: rewrite(f, lambda text: text.replace('"step": 7', '"step": 8')),
        ["'manifest.json' is of step 8, and the folder's name says 7"],
    ),
}


def rewrite(folder: Path, change: Callable[[str], str]) -> None:
    path = folder / MANIFEST
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(("damage", "expected"), FAULTS.values(), ids=FAULTS)
def test_every_fault_names_its_file(
    folder: Path, damage: Callable[[Path], object], expected: list[str]
) -> None:
    damage(folder)
    assert found(folder) == expected


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    assert found(tmp_path / "checkpoint-1") == ["'checkpoint-1' is not a folder"]
    (tmp_path / "checkpoint-2").write_text("")
    assert found(tmp_path / "checkpoint-2") == ["'checkpoint-2' is not a folder"]
    (tmp_path / "checkpoint-3").symlink_to(tmp_path)
    assert found(tmp_path / "checkpoint-3") == ["'checkpoint-3' is a link"]


def test_a_folder_may_have_any_other_name(folder: Path) -> None:
    assert verify(folder.rename(folder.with_name("best"))) == []


@pytest.mark.parametrize(
    "name", ["../b.json", "/etc/passwd", "inner/../b.json", ".", "..", "", "a//b", "./a"]
)
def test_names_that_lead_outside_are_refused(folder: Path, name: str) -> None:
    rewrite(folder, lambda text: text.replace('"b.json"', json.dumps(name)))
    (fault,) = verify(folder)
    assert fault.file == MANIFEST
    assert f"it names {name!r}, which is not plainly inside the folder" in fault.what


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"format": 2, "step": 7, "files": {}}',
        '{"format": 1, "step": 7, "files": []}',
        '{"format": 1, "step": 7, "files": [["a"]]}',
        '{"format": 1, "step": true, "files": {}}',
        '{"format": 1, "step": 7, "files": {"a": 1}}',
        '{"format": 1, "step": 7, "files": {"a": {"bytes": "1", "sha256": "0"}}}',
        '{"format": 1, "step": 7, "files": {"a": {"bytes": 1, "sha256": "0", "more": 1}}}',
        "[" * 100_000,
        "é",
    ],
    ids=lambda text: text[:50],
)
def test_a_manifest_that_is_none(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    (fault,) = verify(folder)
    assert fault.file == MANIFEST
    assert fault.what.startswith(("cannot be read (", "is damaged"))
    with pytest.raises(CheckpointError, match=f"in '{folder}', 'manifest.json' (cannot be read|is damaged)"):
        read_manifest(folder)


def test_every_byte_of_the_manifest_counts(folder: Path) -> None:
    good = (folder / MANIFEST).read_bytes()
    for at in range(len(good)):
        for flip in (0x01, 0x07, 0x20, 0x80):
            bad = bytearray(good)
            bad[at] ^= flip
            (folder / MANIFEST).write_bytes(bad)
            assert verify(folder), f"byte {at} as {bytes([bad[at]])!r} goes unnoticed"


PARTS = st.sampled_from(["a", "b", "é", "a b", "'", "\\", "c.json"])
NAMES = st.lists(PARTS, min_size=1, max_size=3).map("/".join)
# None is a pickle.
CONTENTS = st.binary(max_size=20).filter(lambda content: content[:1] not in (b"P", b"\x80"))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_damage_to_any_file_is_named(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    contents = data.draw(st.dictionaries(NAMES, CONTENTS, min_size=1, max_size=5))
    written = []
    for name, content in contents.items():
        path = folder / name
        if any((folder / up).is_file() for up in Path(name).parents) or path.is_dir():
            continue  # a file where another name has a folder
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        written.append(name)
    write_manifest(folder, 1)
    assert verify(folder) == []
    name = data.draw(st.sampled_from(written))
    content = bytearray((folder / name).read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "add", "remove"] if content else ["add", "remove"]))
    if kind == "flip":
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        content.pop()
    else:
        content += b"x"
    (folder / name).unlink() if kind == "remove" else (folder / name).write_bytes(content)
    assert name in [fault.file for fault in verify(folder)]


# ---- nothing that may run code


class Dangerous:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.abort, ()  # type: ignore[return-value]


def zip_pickle(path: Path) -> None:
    torch.save({"a": Dangerous()}, path)


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Dangerous()))


@pytest.mark.parametrize("write", [zip_pickle, plain_pickle])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "weights", "optimizer.pt", "rng.pth"])
def test_pickles_are_refused_whatever_their_name(
    tmp_path: Path, write: Callable[[Path], None], name: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"'{name}' is .*may run code when it is read"):
        write_manifest(tmp_path, 1)
    assert not (tmp_path / MANIFEST).exists()


def test_a_pickle_with_a_manifest_that_fits_is_refused(folder: Path) -> None:
    zip_pickle(folder / "model.safetensors")
    content = (folder / "model.safetensors").read_bytes()
    entry = Entry(len(content), hashlib.sha256(content).hexdigest())
    forged = Manifest(7, {**read_manifest(folder).files, "model.safetensors": entry})
    (folder / MANIFEST).write_text(forged.text())
    assert found(folder) == [
        "'model.safetensors' is a zip archive, as torch.save writes, whatever its name says, and may run code when it "
        "is read"
    ]


@pytest.mark.parametrize("name", ["a.bin", "a.pt", "a.pth", "a.pkl", "a.PKL", "inner.pt/a.ckpt"])
def test_kinds_of_pickles_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("harmless")
    with pytest.raises(CheckpointError, match=f"'{name}' is of a kind that may run code"):
        write_manifest(tmp_path, 1)


def test_what_is_named_safetensors_is(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("not at all")
    with pytest.raises(CheckpointError, match="'model.safetensors' is not in the safetensors format"):
        write_manifest(tmp_path, 1)


@pytest.mark.parametrize("header", [0x0280, 0x0480, 0x0580])
def test_a_header_that_looks_like_a_pickle_is_none(tmp_path: Path, header: int) -> None:
    """The file begins with its header's length: 640 bytes are 80 02, as a pickle of protocol 2 begins."""
    save_file({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    padded = content[8 : 8 + length].ljust(header)
    path = tmp_path / "model.safetensors"
    path.write_bytes(header.to_bytes(8, "little") + padded + content[8 + length :])
    write_manifest(tmp_path, 1)
    assert verify(tmp_path) == []


def test_a_manifest_that_is_there_is_not_overwritten(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="'manifest.json' is there already"):
        write_manifest(folder, 7)
