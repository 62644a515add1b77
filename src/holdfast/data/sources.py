"""A path, a hub name or a data set in memory -> its rows, each with the place it stands.

Files by suffix, each also with `.gz`: `.jsonl`, `.json` (an array, or one object a line), `.csv`, `.parquet`,
`.arrow`. Folders: of such files, or saved by `datasets.save_to_disk`. Hub names: `owner/name`.

A place is the file and the line on which the row begins, `rows.jsonl:17`; in an array with several rows on one
line `rows.json:1 row 5`; of rows without lines `rows.parquet row 17`. Lines and rows are counted from 1. A row
that cannot be read stands in the stream as `Unreadable`, and the rows around it survive; a file that cannot is
a DataError.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from holdfast.data.faults import Unreadable, shown
from holdfast.data.file_readers import READERS, suffix_of
from holdfast.data.folders import KINDS, data_files, require_plain_names, unread_kind
from holdfast.errors import DataError, did_you_mean

Rows = Iterator[tuple[str, Any]]

BLOCK = 1000  # rows of a data set in memory that are decoded in one go
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_PLACE = re.compile(r"(?P<file>.*?)(?::\d+| row \d+|:\d+ row \d+)", re.DOTALL)


def read_rows(source: Any, split: str | None = None, revision: str | None = None) -> Rows:
    """The rows of `source` in their order, one at a time, as `(where, row)`.

    Args:
        source: a file, a folder, a hub name, a `datasets.Dataset`, or an iterable of rows. A relative path
            starts at the current directory; an existing path goes before a hub name.
        split: of a hub or saved data set, or of a folder: the files whose name or folder starts with it.
        revision: of a hub data set (branch, tag or commit).

    Raises:
        DataError: nothing there (names the nearest path), a file of an unknown kind or that cannot be
            decoded, several splits and none chosen, or a hub name that cannot be loaded.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _rows_in_memory(_one_split(source, split, "dataset"), "dataset")
    path = path_of(source)
    is_there = os.path.exists(path)
    if "://" in str(source) and not is_there:
        # not repeated: it may carry a key
        raise DataError("a URL is not read: download what it names, and give the file")
    if is_there and revision is not None:
        raise DataError(f"'{shown(path)}' is a path; `revision` belongs to hub names")
    if os.path.isdir(path):
        return _rows_of_folder(path, split)
    if is_there:
        if split is not None:
            raise DataError(f"'{shown(path)}' is one file and has no split '{split}'; remove `split`")
        return _rows_of_file(path)
    if _HUB_NAME.fullmatch(str(source)) and suffix_of(path) is None:
        return _rows_of_hub(str(source), split, revision)
    raise DataError(_missing(path))


def path_of(source: str | os.PathLike[str]) -> Path:
    """The path that a source would be, whether or not anything is there."""
    return Path(os.path.expanduser(source))  # which leaves a user who does not exist as it is


def file_of(where: str) -> str:
    """The file a place lies in: `a/rows.jsonl` of `a/rows.jsonl:17`; empty where the place names none."""
    found = _PLACE.fullmatch(where)
    return found["file"] if found else ""


def _rows_of_file(path: Path) -> Rows:
    if not path.is_file():
        raise DataError(
            f"'{shown(path)}' is a pipe or a device; rows are read twice, so write them to a file first"
        )
    suffix = suffix_of(path)
    if suffix is None:
        kind = unread_kind(path) or "of no kind that can be read"
        raise DataError(f"'{shown(path)}' is {kind} (known: {KINDS})")
    return READERS[suffix](path)


def _rows_of_folder(folder: Path, split: str | None) -> Rows:
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        return _rows_of_saved(folder, split)
    files = data_files(folder, split)
    return (row for path in files for row in _rows_of_file(path))


def _rows_of_saved(folder: Path, split: str | None) -> Rows:
    import datasets

    try:
        require_plain_names(folder)
        found = datasets.load_from_disk(folder)
    except DataError:
        raise
    except Exception as error:  # files that somebody else wrote can be wrong in any way
        raise DataError(
            f"the data set saved in '{shown(folder)}' cannot be loaded: {_first_line(error)}"
        ) from error
    return _rows_in_memory(_one_split(found, split, shown(folder)), shown(folder))


def _rows_of_hub(name: str, split: str | None, revision: str | None) -> Rows:
    import datasets

    try:
        found = datasets.load_dataset(name, split=split, revision=revision)
    except Exception as error:  # what is there can be wrong in any way: a loading script, too
        if datasets.config.HF_HUB_OFFLINE:
            reason = "the hub is offline here (HF_HUB_OFFLINE is set) and the cache does not hold it"
        else:
            reason = _first_line(error)
        raise DataError(
            f"{_missing(Path(name))}; and as a hub name '{name}' cannot be loaded: {reason}"
        ) from error
    return _rows_in_memory(_one_split(found, split, name), name)


def _one_split(dataset: Any, split: str | None, name: str) -> Any:
    """The split called `split`, or the only one; a data set without splits is itself."""
    if not isinstance(dataset, Mapping):
        return dataset
    if split is None and len(dataset) == 1:
        return next(iter(dataset.values()))
    if split is None:
        raise DataError(f"'{name}' has several splits ({', '.join(dataset)}); choose one with `split`")
    if split not in dataset:
        raise DataError(f"'{name}' has no split '{split}'{did_you_mean(split, dataset)}")
    return dataset[split]


def _rows_in_memory(rows: Iterable[Any], name: str) -> Rows:
    library = sys.modules.get("datasets")
    if library is not None and isinstance(rows, library.Dataset):
        rows = _rows_of_dataset(rows)
    return ((f"{name} row {number}", row) for number, row in enumerate(rows, start=1))


def _rows_of_dataset(dataset: Any) -> Iterator[Any]:
    """The rows of a `datasets.Dataset`; one with bytes that are not UTF-8 costs itself alone."""
    for start in range(0, len(dataset), BLOCK):
        try:
            yield from list(dataset.select(range(start, min(start + BLOCK, len(dataset)))))
        except UnicodeDecodeError:
            for number in range(start, min(start + BLOCK, len(dataset))):
                try:
                    row = dataset[number]
                except UnicodeDecodeError as error:
                    text = error.object.decode("utf-8", "backslashreplace")
                    row = Unreadable("invalid_text", f"a text of the row is not UTF-8: {error.reason}", text)
                yield row


def _missing(path: Path) -> str:
    parent = path.parent
    while not os.path.isdir(parent):
        path, parent = parent, parent.parent
    near = get_close_matches(path.name, os.listdir(parent), n=1, cutoff=0.5)
    hint = f" (did you mean '{shown(near[0])}'?)" if near else ""
    return f"no file or folder '{shown(path.name)}' in '{shown(parent.resolve())}'{hint}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
