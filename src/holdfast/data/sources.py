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
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from holdfast.data.file_readers import READERS, suffix_of
from holdfast.errors import DataError, did_you_mean

Rows = Iterator[tuple[str, Any]]

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_PLACE = re.compile(r"(?P<file>.*?)(?::\d+| row \d+|:\d+ row \d+)", re.DOTALL)
# Names under which folders keep what must not be trained on.
_HELD_OUT = re.compile(r"(test|eval|dev|valid|validation)(?![a-z])", re.IGNORECASE)


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
    path = Path(source).expanduser()
    if path.exists() and revision is not None:
        raise DataError(f"'{source}' is a path; `revision` belongs to hub names")
    if path.is_dir():
        return _rows_of_folder(path, split)
    if path.exists():
        if split is not None:
            raise DataError(f"'{source}' is one file and has no split '{split}'; remove `split`")
        return _rows_of_file(path)
    if _HUB_NAME.fullmatch(str(source)) and suffix_of(path) is None:
        return _rows_of_hub(str(source), split, revision)
    raise DataError(_missing(path))


def file_of(where: str) -> str:
    """The file a place lies in: `a/rows.jsonl` of `a/rows.jsonl:17`; empty where the place names none."""
    found = _PLACE.fullmatch(where)
    return found["file"] if found else ""


def _rows_of_file(path: Path) -> Rows:
    suffix = suffix_of(path)
    if suffix is None:
        raise DataError(
            f"'{path}' is of no kind that can be read (known: {', '.join(READERS)}, each also .gz)"
        )
    return READERS[suffix](path)


def _rows_of_folder(folder: Path, split: str | None) -> Rows:
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        return _rows_of_saved(folder, split)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and suffix_of(path) is not None]
    if not files:
        raise DataError(
            f"the folder '{folder}' holds no data files (known: {', '.join(READERS)}, each also .gz)"
        )
    inside = [path.relative_to(folder) for path in files]
    if split is not None:
        # `train.jsonl`, `train-00000-of-00002.parquet`, `train/rows.jsonl`
        mine = re.compile(rf"{re.escape(split)}(?![A-Za-z0-9])")
        files = [path for path, name in zip(files, inside, strict=True) if any(map(mine.match, name.parts))]
        if not files:
            raise DataError(f"no file in '{folder}' starts with '{split}' (files: {_names(inside)})")
    else:
        held_out = [name for name in inside if any(map(_HELD_OUT.match, name.parts))]
        if held_out and len(held_out) < len(files):
            raise DataError(
                f"'{folder}' holds files of several splits ({_names(inside)}); choose one with `split`, "
                "so that what is held out is not trained on"
            )
    return (row for path in files for row in _rows_of_file(path))


def _rows_of_saved(folder: Path, split: str | None) -> Rows:
    import datasets

    try:
        found = datasets.load_from_disk(folder)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"the data set saved in '{folder}' cannot be loaded: {_first_line(error)}") from error
    return _rows_in_memory(_one_split(found, split, str(folder)), str(folder))


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(str(path) for path in paths)


def _rows_of_hub(name: str, split: str | None, revision: str | None) -> Rows:
    import datasets

    try:
        found = datasets.load_dataset(name, split=split, revision=revision)
    except (OSError, ValueError) as error:
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
    return ((f"{name} row {number}", row) for number, row in enumerate(rows, start=1))


def _missing(path: Path) -> str:
    parent = path.parent
    while not parent.is_dir():
        path, parent = parent, parent.parent
    near = get_close_matches(path.name, [item.name for item in parent.iterdir()], n=1, cutoff=0.5)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return f"no file or folder '{path.name}' in '{parent.resolve()}'{hint}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
