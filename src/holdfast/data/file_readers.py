"""One kind of file -> its rows and their places. Text is parsed here, so that a bad line is located."""

from __future__ import annotations

import codecs
import csv
import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from gzip import GzipFile
from io import BufferedReader
from pathlib import Path
from typing import Any

from holdfast.data.faults import Unreadable, as_json, shown
from holdfast.data.json_text import LARGEST_ROW, TOO_EARLY, JsonWindow, Parser, parse_line
from holdfast.errors import DataError
from holdfast.file_kinds import HEAD, foreign_kind

Rows = Iterator[tuple[str, Any]]
Stream = BufferedReader | GzipFile

PIECE = 1 << 20  # bytes of a .json file read at a time
PARQUET_BATCH = 1000  # rows decoded at a time
CONVERSATIONS = {"conversations", "messages"}  # keys whose value is a conversation in every layout
LIST_KEYS = CONVERSATIONS | {"completions", "history"}
MESSAGE_KEYS = ({"role", "content"}, {"from", "value"})
DAMAGED = (
    UnicodeDecodeError,
    MemoryError,
)  # of a column's name, and of a length: what Arrow raises besides its own


def suffix_of(path: Path) -> str | None:
    """The suffix that says how to read the file, without `.gz`; None where no reader knows it."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in READERS else None


def read_jsonl(path: Path) -> Rows:
    """One JSON value a line. Lines end at `\\n` alone: U+2028 and its kin are text."""
    name, parser = shown(path), Parser()
    with _opened_text(path) as stream:
        for number, line in enumerate(_lines(stream, name), start=1):
            if line.strip():
                yield f"{name}:{number}", parse_line(line.rstrip(b"\r\n"), parser)


def read_json(path: Path, piece: int = PIECE) -> Rows:
    """An array of rows, one object, or (whatever the suffix says) one object a line.

    Memory holds a few pieces of so many bytes, or the largest row. Rows before a fault are given before it
    is raised.

    Raises:
        DataError: an array that is not JSON throughout; past the fault, where a row begins cannot be known.
    """
    with _opened_text(path) as stream:
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


def read_csv(path: Path) -> Rows:
    """Rows under a header line. The place is the line on which the row begins.

    A cell is a string, but for messages written as JSON: see `_with_messages`.

    Raises:
        DataError: a row that is not CSV: where the next one begins cannot be known; two columns of one name.
    """
    # Cells hold long answers, and the module's limit of 128 KiB is one setting for the process. Beyond this one, a
    # quote was left open.
    csv.field_size_limit(LARGEST_ROW)
    with _opened_text(path) as stream:
        # A byte that is not UTF-8 becomes a lone surrogate, and so the fault of its row alone.
        name = shown(path)
        lines = (line.decode("utf-8", "surrogateescape") for line in _lines(stream, name))
        reader = csv.reader(lines, strict=True)
        begin, parser = 1, Parser()
        try:
            header = _columns(path, next(reader, []))
            begin = reader.line_num + 1
            for cells in reader:
                if cells:
                    yield f"{name}:{begin}", _csv_row(header, cells, parser)
                begin = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{name}:{begin}: not CSV: {_csv_words(error, reader.line_num)}") from error


def _columns(path: Path, header: list[str]) -> list[str]:
    """The names of the columns; those without a name may be several."""
    twice = [name for name, count in Counter(header).items() if name and count > 1]
    if twice:
        raise DataError(f"{shown(path)}: two columns are called {twice[0]!r}; rename or remove one")
    return header


def _csv_words(error: csv.Error, line: int) -> str:
    if "new-line" in str(error):
        return "a carriage return alone ends no line; save the file with \\n or \\r\\n line ends"
    return (
        f"{error} (line {line}). The row that begins here has a quote that is not closed or not doubled: a cell "
        'with quotes, commas or line breaks stands in quotes, and a quote inside it is written twice ("")'
    )


def _csv_row(header: list[str], cells: list[str], parser: Parser) -> Any:
    if len(cells) > len(header):
        return Unreadable(
            "wrong_type", f"{len(cells)} cells under {len(header)} columns; quote them", ",".join(cells)
        )
    return _with_messages(dict(zip(header, cells, strict=False)), parser)


def _with_messages(row: dict[str, Any], parser: Parser) -> dict[str, Any]:
    """The row, its cells of messages written as JSON decoded.

    Those are the lists under `LIST_KEYS` and lists of messages under any key; beside a conversation, a side of
    the pair may be one message. All else stays text, also an answer that is JSON.
    """
    decoded = {
        key: value
        for key, cell in row.items()
        if cell.lstrip()[:1] in ("[", "{")  # parsing every cell would take long
        and not isinstance(value := parse_line(cell.encode("utf-8", "surrogateescape"), parser), Unreadable)
    }
    lists = {
        key: value
        for key, value in decoded.items()
        if isinstance(value, list) and (key in LIST_KEYS or (value and all(map(_is_message, value))))
    }
    paired = not CONVERSATIONS.isdisjoint(lists)
    single = {key: value for key, value in decoded.items() if paired and _is_message(value)}
    return row | lists | single


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and any(value.keys() >= keys for keys in MESSAGE_KEYS)


def read_parquet(path: Path) -> Rows:
    """Rows of a parquet file, decoded a batch at a time."""
    import pyarrow
    from pyarrow import parquet

    try:
        with _opened(path) as stream:
            file = parquet.ParquetFile(pyarrow.PythonFile(stream, mode="r"))
            yield from _rows_of_batches(path, file.iter_batches(batch_size=PARQUET_BATCH))
    except (pyarrow.ArrowException, *DAMAGED) as error:
        raise DataError(f"{shown(path)}: not a parquet file that can be read: {error}") from error


def read_arrow(path: Path) -> Rows:
    """Rows of an Arrow file, in the streaming form (as `datasets` writes) or the random-access form."""
    import pyarrow

    try:
        with _opened(path) as stream:
            form = pyarrow.ipc.open_file if stream.read(6) == b"ARROW1" else pyarrow.ipc.open_stream
            stream.seek(0)
            reader = form(pyarrow.PythonFile(stream, mode="r"))
            if form is pyarrow.ipc.open_file:
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            else:
                batches = iter(reader)
            yield from _rows_of_batches(path, batches)
    except (pyarrow.ArrowException, *DAMAGED) as error:
        raise DataError(f"{shown(path)}: not an Arrow file that can be read: {error}") from error


def _rows_of_batches(path: Path, batches: Iterator[Any]) -> Rows:
    number, name = 0, shown(path)
    for batch in batches:
        _columns(path, batch.schema.names)
        rows: list[Any]
        if _damage(batch) is None:
            rows = batch.to_pylist()
        else:
            rows = [_decoded(batch.slice(index, 1)) for index in range(batch.num_rows)]
        for row in rows:
            number += 1
            yield f"{name} row {number}", row


def _damage(part: Any) -> str | None:
    """What is wrong with a batch or column: bytes that are not UTF-8, or lengths that would be read past the end.

    Arrow itself looks at neither before it hands out values.
    """
    import pyarrow

    try:
        part.validate(full=True)
    except pyarrow.ArrowException as error:
        return str(error)
    return None


def _decoded(batch: Any) -> Any:
    """The one row of a batch, or why it cannot be decoded."""
    sound: dict[str, Any] = {}
    faults: list[str] = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        damage = _damage(column)
        if damage is None:
            sound[name] = column.to_pylist()[0]
        else:
            faults.append(f"the column {name!r} holds bytes that are not UTF-8, or is damaged: {damage}")
    return Unreadable("invalid_text", faults[0], as_json(sound)) if faults else sound


@contextmanager
def _opened_text(path: Path) -> Iterator[Stream]:
    """The file's bytes behind its byte order mark.

    Raises:
        DataError: its first bytes say that it is no UTF-8 text.
    """
    with _opened(path) as stream:
        head = _head(stream)
        encoding = _wide_encoding(head[:4])
        if encoding is not None:
            raise DataError(
                f"{shown(path)}: {encoding} text; save it as UTF-8 (`iconv -f {encoding} -t UTF-8`)"
            )
        kind = foreign_kind(head)
        if kind == "packed by gzip":
            raise DataError(f"{shown(path)}: packed by gzip; end its name in .gz, or unpack it")
        if kind is not None:
            raise DataError(f"{shown(path)}: not text, but {kind}: loading it may run code, so it is not")
        if head.startswith(codecs.BOM_UTF8):
            stream.read(len(codecs.BOM_UTF8))
        yield stream


def _head(stream: Stream) -> bytes:
    """The first `HEAD` bytes, or all; left to be read."""
    head = stream.read(HEAD)
    stream.seek(0)
    return head


def _lines(stream: Stream, name: str) -> Iterator[bytes]:
    """The lines of a text, read one at a time, with their ends.

    Raises:
        DataError: a line that no row needs: a file without line breaks, or a gzip file that unpacks without end.
    """
    for number, line in enumerate(iter(lambda: stream.readline(LARGEST_ROW + 1), b""), start=1):
        if len(line) > LARGEST_ROW:
            raise DataError(f"{name}:{number}: a line of more than {LARGEST_ROW >> 20} MiB, which is no row")
        yield line


def _wide_encoding(head: bytes) -> str | None:
    """The encoding of two or four bytes a character that a text's first four bytes show; None for any other."""
    if head in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        return "UTF-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    zeros = [byte == 0 for byte in head]  # of two ASCII characters, every other byte
    if zeros == [False, True] * 2:
        return "UTF-16LE"
    return "UTF-16BE" if zeros == [True, False] * 2 else None


@contextmanager
def _opened(path: Path) -> Iterator[Stream]:
    """The file's bytes, unpacked where its name ends in `.gz`."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            yield stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{shown(path)}: damaged gzip file: {error}") from error
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read: {error.strerror or error}") from error


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
