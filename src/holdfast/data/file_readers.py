"""Which reader is a file's, and those of JSON. Text is parsed here, so that a bad line is located."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from holdfast.data.faults import shown
from holdfast.data.file_bytes import lines, opened_text
from holdfast.data.json_text import TOO_EARLY, JsonWindow, Parser, parse_line
from holdfast.data.tables import Rows, read_arrow, read_csv, read_parquet
from holdfast.errors import DataError

PIECE = 1 << 20  # bytes of a .json file read at a time


def suffix_of(path: Path) -> str | None:
    """The suffix that says how to read the file, without `.gz`; None where no reader knows it."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in READERS else None


def read_jsonl(path: Path) -> Rows:
    """One JSON value a line. Lines end at `\\n` alone: U+2028 and its kin are text."""
    name, parser = shown(path), Parser()
    with opened_text(path) as stream:
        for number, line in enumerate(lines(stream, name), start=1):
            if line.strip():
                yield f"{name}:{number}", parse_line(line.rstrip(b"\r\n"), parser)


def read_json(path: Path, piece: int = PIECE) -> Rows:
    """An array of rows, one object, or (whatever the suffix says) one object a line.

    Memory holds a few pieces of so many bytes, or the largest row. Rows before a fault are given before it
    is raised.

    Raises:
        DataError: an array that is not JSON throughout; past the fault, where a row begins cannot be known.
    """
    with opened_text(path) as stream:
        window = JsonWindow(shown(path), stream, piece)
        first = window.next()
        if first == "[":
            yield from _array(window)
            return
        if first and _is_one_value(window):
            yield f"{window.name}:{window.line}", window.value
            return
    yield from read_jsonl(path)


def _array(window: JsonWindow) -> Rows:
    """The elements of the array that begins here, and nothing behind it.

    The place is the line on which a row begins, with the row's number where an earlier row begins on it too.
    """
    window.at += 1
    number, line, mark = 0, 0, window.next()
    while mark != "]":
        window.read()
        number += 1
        shared = f" row {number}" if window.line == line else ""
        line = window.line
        yield f"{window.name}:{line}{shared}", window.value
        mark = window.next()
        if mark == ",":
            window.at += 1
            if window.next() == "]":
                raise window.fault("not JSON: a comma with no row behind it")
        elif mark != "]":
            raise window.fault(f"not JSON: Expecting ',' or ']' behind the row{'' if mark else TOO_EARLY}")
    window.at += 1
    if window.next():
        raise window.fault("not JSON: text behind the bracket that closes the array")


def _is_one_value(window: JsonWindow) -> bool:
    """Whether the file holds one value over several lines, now in `window.value`; otherwise it is one a line.

    Raises:
        DataError: it is neither.
    """
    try:
        window.read()
        if "\n" not in window.value_text():
            return False
        if window.next():
            raise window.fault("not JSON: text behind the value's end")
    except DataError:
        if not window.has_a_row_below():
            raise
        return False
    return True


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
