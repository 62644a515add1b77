"""A benchmark's questions, references and judge prompts: read from a folder or the hub, known by their hashes.

They are other people's data and no part of this package. A hash is of the content that counts, so that a file saved
anew, with other spacing or further keys, is the same.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from holdfast.data.faults import Unreadable
from holdfast.data.file_readers import read_jsonl
from holdfast.errors import DataError

Row = dict[str, Any]


def content_hash(value: Any) -> str:
    """The SHA-256 of a JSON value in one fixed spelling."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def assets_folder(source: str | Path, patterns: Sequence[str]) -> Path:
    """The folder that `source` is, or the copy of the hub's data set of that name.

    Args:
        patterns: of the files to fetch from the hub.

    Raises:
        DataError: neither is there.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or str(source).count("/") != 1 or str(source).startswith((".", "~", "/")):
        raise DataError(f"'{source}': no such folder; --assets is one, or a data set of the hub (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(str(source), repo_type="dataset", allow_patterns=[f"**{p}" for p in patterns])
        )
    except Exception as error:  # whatever the network, the hub or its cache come to
        raise DataError(
            f"'{source}': no such folder, and the hub does not give it ({type(error).__name__}: {error})"
        ) from error


def find_file(folder: Path, places: Iterable[str]) -> Path | None:
    """The first of several relative paths that is a file in `folder`."""
    return next((folder / place for place in places if (folder / place).is_file()), None)


def require_file(folder: Path, places: Sequence[str], what: str) -> Path:
    """`find_file`, or a DataError that says what is missing."""
    found = find_file(folder, places)
    if found is None:
        raise DataError(
            f"'{folder}': has no {what} ({' or '.join(places)}); name another folder with --assets"
        )
    return found


def read_table(path: str | Path, what: str = "row") -> list[tuple[str, Row]]:
    """(place, row) of every line of a JSON Lines file.

    Raises:
        DataError: the file cannot be read, or a line is no object; names the line.
    """
    rows: list[tuple[str, Row]] = []
    if not Path(path).is_file():
        raise DataError(f"'{path}': no such file")
    for place, row in read_jsonl(Path(path)):
        if isinstance(row, Unreadable):
            raise DataError(f"{place}: {row.detail}; mend or remove the line")
        if not isinstance(row, dict):
            raise DataError(f"{place}: a {what} is an object; mend or remove the line")
        if not all_finite(row):
            raise DataError(f"{place}: holds NaN or Infinity, which is no JSON; mend the line")
        rows.append((place, row))
    return rows


def all_finite(value: Any) -> bool:
    """Whether a value of a file is free of NaN and Infinity, which JSON does not have."""
    if isinstance(value, float):
        return isfinite(value)
    if isinstance(value, dict):
        return all(map(all_finite, value.values()))
    return not isinstance(value, list) or all(map(all_finite, value))


def field_of(place: str, row: Any, *path: str | int) -> Any:
    """The value at a path of keys and positions of a row.

    Raises:
        DataError: it is not there; names the place and the path.
    """
    value = row
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            name = ".".join(map(str, path))
            raise DataError(f"{place}: has no '{name}', or it is of another layout") from None
    return value


def text_of(place: str, row: Any, *path: str | int) -> str:
    """`field_of` that must be a text."""
    value = field_of(place, row, *path)
    if not isinstance(value, str):
        raise DataError(f"{place}: '{'.'.join(map(str, path))}' must be a text, not {type(value).__name__}")
    return value


@dataclass(frozen=True)
class Keyed:
    """Rows by question, the last of several, as the original tools read them, and what is odd about the file.

    Attributes:
        twice: ids with several rows.
        extra: ids that are no question's.
        missing: questions without a row.
    """

    rows: dict[Any, tuple[str, Row]]
    twice: list[Any]
    extra: list[Any]
    missing: list[Any]

    def as_record(self) -> dict[str, list[Any]]:
        """For `results.json`."""
        return {"twice": self.twice, "extra": self.extra, "missing": self.missing}


def keyed(rows: Iterable[tuple[str, Row]], key: Callable[[str, Row], Any], questions: Sequence[Any]) -> Keyed:
    """Rows by `key(place, row)`, held against the questions' ids."""
    found: dict[Any, tuple[str, Row]] = {}
    count: Counter[Any] = Counter()
    for place, row in rows:
        name = key(place, row)
        if not isinstance(name, str | int):
            raise DataError(f"{place}: a question's id is a text or a number, not {type(name).__name__}")
        found[name] = (place, row)
        count[name] += 1
    known = set(questions)
    return Keyed(
        rows={name: found[name] for name in questions if name in found},
        twice=[name for name, times in count.items() if times > 1],
        extra=[name for name in found if name not in known],
        missing=[name for name in questions if name not in found],
    )


@dataclass(frozen=True)
class JudgePrompt:
    """A judge prompt: what the system message says, and the user message with its places in braces."""

    name: str
    system: str
    template: str

    def fill(self, values: Mapping[str, str]) -> str:
        """The user message.

        Raises:
            DataError: the template asks for what this benchmark does not have, or is no template.
        """
        try:
            return self.template.format_map(values)
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            known = ", ".join(sorted(values))
            raise DataError(
                f"judge prompt '{self.name}': cannot be filled ({error!r}); it may name {known}"
            ) from error

    def messages(self, values: Mapping[str, str]) -> list[dict[str, str]]:
        """The conversation that a judge is asked with; a system message that is empty is left out."""
        user = {"role": "user", "content": self.fill(values)}
        return [{"role": "system", "content": self.system}, user] if self.system else [user]
