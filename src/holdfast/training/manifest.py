"""`manifest.json`: what a folder holds, written last, so that a folder with one is whole; and the check against it.

    {
      "files": {
        "adapter/weights.safetensors": {
          "bytes": 1024,
          "sha256": "9f86d081884c7d65..."
        }
      },
      "format": 1,
      "step": 200
    }

Names are relative, with `/` between folders; the manifest does not list itself. There is one way to write a manifest,
so that a flipped byte in it shows, wherever it is.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from holdfast.errors import CheckpointError
from holdfast.file_kinds import HEAD, PICKLES, begins_as_safetensors, pickle_kind
from holdfast.files import retried, sha256_of, sync

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Fault:
    """What is wrong with one file of a folder.

    Attributes:
        file: its name inside the folder.
        what: what is wrong, as the rest of a sentence.
    """

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file!r} {self.what}"


@dataclass(frozen=True)
class Entry:
    """A file as the manifest has it: its size in bytes, and its SHA-256."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A folder's step, and its files by name."""

    step: int
    files: Mapping[str, Entry]

    @property
    def bytes(self) -> int:
        """The size of all files together."""
        return sum(entry.bytes for entry in self.files.values())

    def text(self) -> str:
        """The manifest as it stands in the file."""
        files = {name: {"bytes": entry.bytes, "sha256": entry.sha256} for name, entry in self.files.items()}
        document = {"format": FORMAT, "step": self.step, "files": files}
        return json.dumps(document, indent=2, sort_keys=True) + "\n"


def write_manifest(folder: Path, step: int) -> Manifest:
    """Sync every file of a folder, then its folders, and write the manifest, which is then synced too.

    Raises:
        CheckpointError: the folder has a manifest, or a file of a kind that a checkpoint must not hold; nothing is
            written.
        OSError: the disk does not take it.
    """
    found = _Found.of(folder)
    faults = found.faults + [fault for name in found.files if (fault := _fault_of_kind(folder, name))]
    if (folder / MANIFEST).exists():
        faults.append(Fault(MANIFEST, "is there already"))
    if faults:
        raise CheckpointError(f"'{folder}' cannot be published as a checkpoint: {listed(faults)}")
    for name in found.files:
        sync(folder / name)
    for inner in reversed(found.folders):  # what is inside comes first
        sync(inner)
    entries = {name: Entry(size, sha256_of(folder / name)) for name, size in found.files.items()}
    manifest = Manifest(step, entries)
    with (folder / MANIFEST).open("w", encoding="ascii") as file:
        file.write(manifest.text())
        file.flush()
        os.fsync(file.fileno())
    sync(folder)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder; only names inside the folder are in it.

    Raises:
        CheckpointError: there is none, or it is not as `write_manifest` writes it.
    """
    manifest = _manifest_or_fault(folder)
    if isinstance(manifest, Fault):
        raise CheckpointError(f"in '{folder}', {manifest}")
    return manifest


def _manifest_or_fault(folder: Path) -> Manifest | Fault:
    try:
        text = retried((folder / MANIFEST).read_bytes).decode("ascii")
        manifest = _parsed(json.loads(text))
    except FileNotFoundError:
        return Fault(MANIFEST, "is missing: the checkpoint was not finished, or not written by this program")
    except (OSError, ValueError, RecursionError, TypeError, KeyError) as error:
        return Fault(MANIFEST, f"cannot be read ({type(error).__name__}: {error})")
    return manifest if manifest.text() == text else Fault(MANIFEST, "is damaged: it is not as it was written")


def _parsed(document: Any) -> Manifest:
    if document["format"] != FORMAT:
        raise ValueError(f"it is of format {document['format']!r}; this version reads format {FORMAT}")
    entries = {name: Entry(**entry) for name, entry in dict(document["files"]).items()}
    for name in entries:
        path = PurePosixPath(name)
        if path.is_absolute() or name != str(path) or {".", ".."} & {name, *path.parts}:
            raise ValueError(f"it names {name!r}, which is not plainly inside the folder")
    if not all(type(number) is int for number in [document["step"], *(e.bytes for e in entries.values())]):
        raise TypeError("a number is none")
    return Manifest(document["step"], entries)


def verify(folder: Path) -> list[Fault]:
    """Everything that is wrong with a checkpoint; none where it is whole and every byte as it was written.

    All its files are read. Nothing in them is executed, no link is followed, and nothing outside is opened.
    """
    if folder.is_symlink() or not folder.is_dir():
        return [Fault(folder.name, "is a link" if folder.is_symlink() else "is not a folder")]
    found = _Found.of(folder)
    if any(fault.file == MANIFEST for fault in found.faults):
        return found.faults
    manifest = _manifest_or_fault(folder)
    if isinstance(manifest, Fault):
        return [*found.faults, manifest]
    faults = list(found.faults)
    named = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    if named and int(named[1]) != manifest.step:
        faults.append(Fault(MANIFEST, f"is of step {manifest.step}, and the folder's name says {named[1]}"))
    odd = {fault.file for fault in faults}
    faults += [Fault(name, "is missing") for name in manifest.files.keys() - found.files.keys() - odd]
    for name in found.files:
        entry = manifest.files.get(name)
        fault = (
            Fault(name, "is not in the manifest") if entry is None else _fault_of_bytes(folder, name, entry)
        )
        fault = fault or _fault_of_kind(folder, name)
        if fault is not None:
            faults.append(fault)
    return sorted(faults, key=lambda fault: fault.file)


def listed(faults: list[Fault]) -> str:
    """The first faults, and how many there are besides."""
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    return "; ".join(map(str, faults[:3])) + more


def _fault_of_bytes(folder: Path, name: str, entry: Entry) -> Fault | None:
    path = folder / name
    try:
        size = path.lstat().st_size
        if size != entry.bytes:
            return Fault(name, f"has {size:,} bytes; the manifest says {entry.bytes:,}")
        if retried(partial(sha256_of, path)) != entry.sha256:
            return Fault(name, "is damaged: its bytes do not have the manifest's SHA-256")
    except OSError as error:
        return Fault(name, f"cannot be read: {error.strerror}")
    return None


def _fault_of_kind(folder: Path, name: str) -> Fault | None:
    """A fault where a file is, or may be, a pickle."""
    path = folder / name
    kind = path.suffix.lower()
    if kind in PICKLES:
        return Fault(name, f"is of a kind that may run code when it is read ({kind}); save it as safetensors")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        return Fault(name, f"cannot be read: {error.strerror}")
    if kind == ".safetensors" and begins_as_safetensors(head, path.stat().st_size):
        return None
    pickled = pickle_kind(head)
    if pickled is not None:
        return Fault(name, f"is {pickled}, whatever its name says, and may run code when it is read")
    return Fault(name, "is not in the safetensors format") if kind == ".safetensors" else None


@dataclass
class _Found:
    """What is in a folder: plain files by name with their sizes, folders (outer ones first), and all else as faults."""

    files: dict[str, int]
    folders: list[Path]
    faults: list[Fault]

    @classmethod
    def of(cls, folder: Path) -> _Found:
        found = cls({}, [folder], [])
        for inner in found.folders:  # grows as it is walked
            try:
                entries = retried(partial(_entries, inner))
            except OSError as error:
                found.faults.append(Fault(_name(inner, folder), f"cannot be read: {error.strerror}"))
                continue
            for path, status in entries:
                name = _name(path, folder)
                if stat.S_ISLNK(status.st_mode):
                    found.faults.append(Fault(name, "is a link; a checkpoint holds its own files only"))
                elif stat.S_ISDIR(status.st_mode):
                    found.folders.append(path)
                elif not stat.S_ISREG(status.st_mode):
                    found.faults.append(Fault(name, "is neither a file nor a folder"))
                elif name != MANIFEST:
                    found.files[name] = status.st_size
        return found


def _entries(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """What stands in a folder, by name; links as themselves."""
    return [(path, path.lstat()) for path in sorted(folder.iterdir())]


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
