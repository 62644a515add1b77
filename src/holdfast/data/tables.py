"""Files with named columns (CSV, Parquet, Arrow) -> their rows and their places."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from holdfast.data.faults import Unreadable, as_json, shown
from holdfast.data.file_bytes import lines, opened, opened_text
from holdfast.data.json_text import LARGEST_ROW, Parser, parse_line
from holdfast.errors import DataError

Rows = Iterator[tuple[str, Any]]

PARQUET_BATCH = 1000  # rows decoded at a time
CONVERSATIONS = {"conversations", "messages"}  # keys whose value is a conversation in every layout
LIST_KEYS = CONVERSATIONS | {"completions", "history"}
MESSAGE_KEYS = ({"role", "content"}, {"from", "value"})
# What Arrow raises besides its own: of a column's name, and of a length.
DAMAGED = (UnicodeDecodeError, MemoryError)


def read_csv(path: Path) -> Rows:
    """Rows under a header line. The place is the line on which the row begins.

    A cell is a string, but for messages written as JSON: see `_with_messages`.

    Raises:
        DataError: a row that is not CSV: where the next one begins cannot be known; two columns of one name.
    """
    # Cells hold long answers, and the module's limit of 128 KiB is one setting for the process. Beyond this one, a
    # quote was left open.
    csv.field_size_limit(LARGEST_ROW)
    with opened_text(path) as stream:
        # A byte that is not UTF-8 becomes a lone surrogate, and so the fault of its row alone.
        name = shown(path)
        text = (line.decode("utf-8", "surrogateescape") for line in lines(stream, name))
        reader = csv.reader(text, strict=True)
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


def _csv_words(error: csv.Error, line: int) -> str:
    if "new-line" in str(error):
        return "a carriage return alone ends no line; save the file with \\n or \\r\\n line ends"
    return (
        f"{error} (line {line}). The row that begins here has a quote that is not closed or not doubled: a cell "
        'with quotes, commas or line breaks stands in quotes, and a quote inside it is written twice ("")'
    )


def read_parquet(path: Path) -> Rows:
    """Rows of a parquet file, decoded a batch at a time."""
    import pyarrow
    from pyarrow import parquet

    try:
        with opened(path) as stream:
            file = parquet.ParquetFile(pyarrow.PythonFile(stream, mode="r"))
            yield from _rows_of_batches(path, file.iter_batches(batch_size=PARQUET_BATCH))
    except (pyarrow.ArrowException, *DAMAGED) as error:
        raise DataError(f"{shown(path)}: not a parquet file that can be read: {error}") from error


def read_arrow(path: Path) -> Rows:
    """Rows of an Arrow file, in the streaming form (as `datasets` writes) or the random-access form."""
    import pyarrow

    try:
        with opened(path) as stream:
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


def _columns(path: Path, header: list[str]) -> list[str]:
    """The names of the columns; those without a name may be several."""
    twice = [name for name, count in Counter(header).items() if name and count > 1]
    if twice:
        raise DataError(f"{shown(path)}: two columns are called {twice[0]!r}; rename or remove one")
    return header
