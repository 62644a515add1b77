"""One kind of file -> its rows and their places. Text is parsed here, so that a bad line is located."""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from holdfast.data.faults import Reason, Unreadable
from holdfast.errors import DataError

Rows = Iterator[tuple[str, Any]]

PARQUET_BATCH = 1000  # rows decoded at a time


def suffix_of(path: Path) -> str | None:
    """The suffix that says how to read the file, without `.gz`; None where no reader knows it."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in READERS else None


def read_jsonl(path: Path) -> Rows:
    """One JSON value a line. Lines end at `\\n` alone: U+2028 and its kin are text."""
    with _opened(path) as stream:
        for number, line in enumerate(stream, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield f"{path}:{number}", _parsed(line.rstrip(b"\r\n"))


def read_json(path: Path) -> Rows:
    """An array of rows, one object, or (whatever the suffix says) one object a line.

    Raises:
        DataError: an array that is not JSON throughout; past the fault, where a row begins cannot be known.
    """
    with _opened(path) as stream:
        data = stream.read().removeprefix(b"\xef\xbb\xbf")
    if not data.lstrip().startswith(b"["):
        if isinstance(whole := _parsed(data), Unreadable):
            yield from read_jsonl(path)
        else:
            yield f"{path} row 1", whole
        return
    try:
        # A byte that is not UTF-8 becomes a lone surrogate, and so the fault of its row alone.
        rows = json.loads(data.decode("utf-8", "surrogateescape"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno}){_ONE_A_LINE}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON that can be read: {error}{_ONE_A_LINE}") from error
    for number, row in enumerate(rows, start=1):
        yield f"{path} row {number}", row


_ONE_A_LINE = ". Mend it there, or write one row a line (.jsonl): then a bad row costs only itself"


def read_csv(path: Path) -> Rows:
    """Rows under a header line; every cell is a string. The place is the line on which the row ends."""
    # Cells hold long answers, and the module's limit of 128 KiB is one setting for the process.
    csv.field_size_limit(sys.maxsize)
    with _opened(path) as stream:
        # A byte that is not UTF-8 becomes a lone surrogate, and so the fault of its row alone.
        lines = (line.decode("utf-8", "surrogateescape") for line in stream)
        reader = csv.reader(lines, strict=True)
        try:
            header = [name.removeprefix("\ufeff") for name in next(reader, [])]
            for cells in reader:
                if cells:
                    yield f"{path}:{reader.line_num}", _csv_row(header, cells)
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not CSV: {error}") from error


def _csv_row(header: list[str], cells: list[str]) -> Any:
    if len(cells) > len(header):
        return Unreadable(
            "wrong_type", f"{len(cells)} cells under {len(header)} columns; quote them", ",".join(cells)
        )
    return dict(zip(header, cells, strict=False))


def read_parquet(path: Path) -> Rows:
    """Rows of a parquet file, decoded a batch at a time."""
    import pyarrow
    from pyarrow import parquet

    try:
        with _opened(path) as stream:
            file = parquet.ParquetFile(pyarrow.PythonFile(stream, mode="r"))
            yield from _rows_of_batches(path, file.iter_batches(batch_size=PARQUET_BATCH))
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a parquet file that can be read: {error}") from error


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
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not an Arrow file that can be read: {error}") from error


def _rows_of_batches(path: Path, batches: Iterator[Any]) -> Rows:
    number = 0
    for batch in batches:
        try:
            rows: list[Any] = batch.to_pylist()
        except UnicodeDecodeError:
            rows = [_decoded(batch.slice(index, 1)) for index in range(batch.num_rows)]
        for row in rows:
            number += 1
            yield f"{path} row {number}", row


def _decoded(batch: Any) -> Any:
    """The one row of a batch, or why it cannot be decoded."""
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at byte {error.start}"
        return Unreadable("invalid_text", f"a string is not UTF-8: {byte}", repr(error.object[:200]))


def _parsed(line: bytes) -> Any:
    """The JSON value of a line, or why there is none."""
    reason: Reason = "unparsable_json"
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        reason = "invalid_text"
        detail = f"not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start} of the line"
    except json.JSONDecodeError as error:
        detail = f"not JSON: {error.msg} at character {error.pos} of the line"
    except (ValueError, RecursionError) as error:  # a number too long, or nesting too deep
        detail = f"not JSON that can be read: {error}"
    return Unreadable(reason, detail, line.decode("utf-8", "backslashreplace"))


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked where its name ends in `.gz`."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            yield stream  # type: ignore[misc]
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
