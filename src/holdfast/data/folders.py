"""Which files of a folder are its rows, and what must not stand among them.

Hidden files are left alone (what a Mac or a notebook leaves is no data), and so is every file that is named like no
rows. But what may well be meant as rows and is not read (a pickle, an archive, a link out of the folder, a loading
script) is an error that names it: left out in silence, it would be missed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from holdfast.data.faults import shown
from holdfast.data.file_readers import READERS, suffix_of
from holdfast.errors import DataError
from holdfast.file_kinds import PICKLES

ARCHIVES = frozenset(".zip .tar .tgz .tbz2 .txz .7z .rar .bz2 .xz .zst".split())
KINDS = f"{', '.join(READERS)}, each also .gz"
# Names under which folders keep what must not be trained on.
_HELD_OUT = re.compile(r"(test|eval|dev|valid|validation)(?![a-z])", re.IGNORECASE)


def data_files(folder: Path, split: str | None) -> list[Path]:
    """The files of a folder, and of the folders in it, that hold rows by their names; sorted.

    Args:
        split: the files whose name or folder starts with it; by default all.

    Raises:
        DataError: no file, files of several splits and none chosen; a pickle or an archive among those chosen; a
            link that leads out of the folder or to nothing; a loading script.
    """
    script = folder / f"{folder.resolve().name}.py"
    if script.is_file():
        raise DataError(
            f"'{shown(script)}' is a loading script, and no code of a data set is run. Save the data set that it "
            "makes (`save_to_disk`), or take the script out of the folder to read the other files as they are"
        )
    paths = sorted(_visible(folder))
    _require_inside(folder, paths)
    inside = [path.relative_to(folder) for path in paths if not path.is_dir()]
    names = [name for name in inside if suffix_of(name) is not None]
    if split is not None:
        # `train.jsonl`, `train-00000-of-00002.parquet`, `train/rows.jsonl`
        mine = re.compile(rf"{re.escape(split)}(?![A-Za-z0-9])")
        inside = [name for name in inside if any(map(mine.match, name.parts))]
        chosen = [name for name in inside if suffix_of(name) is not None]
        if names and not chosen:
            raise DataError(f"no file in '{shown(folder)}' starts with '{split}' (files: {_list(names)})")
        names = chosen
    _require_none_left_out(folder, inside)
    if not names:
        raise DataError(f"the folder '{shown(folder)}' holds no data files (known: {KINDS})")
    held_out = [name for name in names if any(map(_HELD_OUT.match, name.parts))]
    if split is None and held_out and len(held_out) < len(names):
        raise DataError(
            f"'{shown(folder)}' holds files of several splits ({_list(names)}); choose one with `split`, "
            "so that what is held out is not trained on"
        )
    return [folder / name for name in names]


def unread_kind(path: Path) -> str | None:
    """What a file is by its name, if rows may well be in it and are not read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PICKLES:
        return "a pickle by its name: loading one can run any code, so it is never opened"
    if suffixes and (suffixes[-1] in ARCHIVES or suffixes[-2:] == [".tar", ".gz"]):
        return "an archive by its name, which is not unpacked"
    return None


def require_plain_names(folder: Path) -> None:
    """Raise a DataError where a data set that `datasets` saved names files outside of its folder.

    Raises:
        OSError, ValueError, KeyError, TypeError, RecursionError: its own files do not say what it consists of.
    """
    _require_inside(folder, _visible(folder))
    names: list[str] = []
    parts = [""]
    if (folder / "dataset_dict.json").exists():
        parts = json.loads((folder / "dataset_dict.json").read_bytes())["splits"]
        names += parts
    _require_plain(folder, names)
    for part in parts:
        state = json.loads((folder / part / "state.json").read_bytes())
        _require_plain(folder / part, [file["filename"] for file in state["_data_files"]])


def _require_plain(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        if name != Path(name).name:
            raise DataError(
                f"the data set saved in '{shown(folder)}' names '{shown(name)}' as a part of itself; its parts are "
                "names of files in its folder, without a path"
            )


def _visible(folder: Path) -> Iterator[Path]:
    """Everything in a folder but what is hidden."""
    for path in folder.rglob("*"):
        inside = path.relative_to(folder).parts
        if not any(part.startswith(".") or part == "__MACOSX" for part in inside):
            yield path


def _require_inside(folder: Path, paths: Iterable[Path]) -> None:
    """Links stay in their folder. One that leads out would put anything into reports: a file of keys, say.

    The hub's cache keeps a data set as links to its own files, beside the folder.
    """
    here = folder.resolve()
    roots = [here]
    for ancestor in (here, *here.parents):
        if ancestor.parent.name == "snapshots":
            roots.append(ancestor.parent.parent / "blobs")
    for path in paths:
        if not path.is_symlink() or (path.is_file() and suffix_of(path) is None):
            continue
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
            raise DataError(f"'{shown(path)}' is a link that leads nowhere; remove it") from error
        if not any(target.is_relative_to(root) for root in roots):
            raise DataError(
                f"'{shown(path)}' is a link out of its folder, to '{shown(target)}'. Rows are read from the folder "
                "alone: give that path itself, or copy it here"
            )


def _require_none_left_out(folder: Path, names: Iterable[Path]) -> None:
    for name in names:
        kind = unread_kind(name)
        if kind is not None:
            raise DataError(
                f"'{shown(folder / name)}' is {kind}, and its rows would be missed. Take it out of the folder, or "
                "give the file to read by itself"
            )


def _list(names: Iterable[Path]) -> str:
    return ", ".join(map(shown, names))
