"""A file's bytes: unpacked, seen to be UTF-8 text where text is asked for, and cut into lines of bounded length."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from gzip import GzipFile
from io import BufferedReader
from pathlib import Path

from holdfast.data.faults import shown
from holdfast.data.json_text import LARGEST_ROW
from holdfast.errors import DataError
from holdfast.file_kinds import HEAD, foreign_kind

Stream = BufferedReader | GzipFile


@contextmanager
def opened(path: Path) -> Iterator[Stream]:
    """The file's bytes, unpacked where its name ends in `.gz`.

    Raises:
        DataError: it cannot be read, now or while it is.
    """
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            yield stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{shown(path)}: damaged gzip file: {error}") from error
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read: {error.strerror or error}") from error


@contextmanager
def opened_text(path: Path) -> Iterator[Stream]:
    """The file's bytes behind its byte order mark.

    Raises:
        DataError: its first bytes say that it is no UTF-8 text.
    """
    with opened(path) as stream:
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


def lines(stream: Stream, name: str) -> Iterator[bytes]:
    """The lines of a text, read one at a time, with their ends.

    Raises:
        DataError: a line that no row needs: a file without line breaks, or a gzip file that unpacks without end.
    """
    for number, line in enumerate(iter(lambda: stream.readline(LARGEST_ROW + 1), b""), start=1):
        if len(line) > LARGEST_ROW:
            raise DataError(f"{name}:{number}: a line of more than {LARGEST_ROW >> 20} MiB, which is no row")
        yield line
