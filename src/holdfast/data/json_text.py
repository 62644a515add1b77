"""JSON text -> values, by the line or in pieces; what is wrong comes with its place and in words that read well."""

from __future__ import annotations

import codecs
import json
import re
import sys
from collections import Counter
from typing import Any, Protocol

from holdfast.data.faults import DEEPEST, Reason, Unreadable
from holdfast.errors import DataError


class Parser:
    """JSON as Python reads it, NaN and Infinity included.

    Attributes:
        decode, raw_decode: those of `json.JSONDecoder`.
        repeated: keys that stand twice in an object, of the values read since it was cleared.
    """

    def __init__(self) -> None:
        decoder = json.JSONDecoder(object_pairs_hook=self._object)
        self.decode = decoder.decode
        self.raw_decode = decoder.raw_decode
        self.repeated: list[str] = []

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            self.repeated.append(Counter(key for key, _ in pairs).most_common(1)[0][0])
        return made


def parse_line(line: bytes, parser: Parser) -> Any:
    """The JSON value of a line, or why there is none."""
    reason: Reason = "unparsable_json"
    parser.repeated.clear()
    try:
        text = line.decode("utf-8")
        value = parser.decode(text)
        detail = _refusal(value, parser)
        if not detail:
            return value
        reason = "wrong_type"
    except UnicodeDecodeError as error:
        reason = "invalid_text"
        byte = f"byte 0x{line[error.start]:02x} at byte {error.start} of the line"
        detail = f"not UTF-8: {byte}; save the text as UTF-8"
    except json.JSONDecodeError as error:
        ended = _is_unterminated(error) or error.pos >= len(text)
        detail = f"{words_of(error, ended)} (column {error.colno})"
        if text.strip() == "[":
            detail += "; a file that is one array is to be named .json"
    except (ValueError, RecursionError) as error:
        detail = words_of(error)
    return Unreadable(reason, detail, line.decode("utf-8", "backslashreplace"))


class Stream(Protocol):
    """A file's bytes."""

    def read(self, size: int, /) -> bytes: ...


class JsonWindow:
    """The part of a JSON text that is in memory, and how far it is read.

    Memory holds a few pieces, or the largest value. Errors name the line and column in the whole text.

    Attributes:
        text, at: what is in memory, and the index in it of the first character still to be read.
        value: the value last read, or why it cannot be used.
        line: the line on which it begins, counted from 1.
    """

    def __init__(self, name: str, stream: Stream, piece: int) -> None:
        """`name`: the file's, for places; `piece`: bytes to read at a time."""
        self.name = name
        self.text = ""
        self.at = 0
        self.value: Any = None
        self.line = 1
        self._value_at = 0  # index in `text` where `value` begins
        self._stream = stream
        self._piece = piece
        # A byte that is not UTF-8 becomes a lone surrogate, and so the fault of its row alone.
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._parser = Parser()
        self._lines = 0  # newlines before `text`
        self._counted = (0, 0)  # an index of `text`, and the newlines of the whole text before it
        self._columns = 0  # characters before `text` in its first line

    def next(self) -> str:
        """The next character that is not blank, left to be read; empty at the end of the file."""
        while True:
            self.at = _BLANK.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or not self._grow():
                return self.text[self.at : self.at + 1]

    def read(self) -> None:
        """Read the value that begins here into `value`.

        Raises:
            DataError: it is not JSON, or cannot be read.
        """
        while True:
            fault: ValueError | RecursionError | None = None
            self._parser.repeated.clear()
            try:
                self.value, end = self._parser.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                fault, end = error, len(self.text) if _is_unterminated(error) else error.pos
            except (ValueError, RecursionError) as error:  # its place is not told
                fault, end = error, len(self.text) if self.text[-1].isdigit() else self.at
            # What ends this close to the end of `text` may be a token cut in two.
            if end <= len(self.text) - LONGEST_CUT or not self._grow():
                break
        if fault is not None:
            at = fault.pos if isinstance(fault, json.JSONDecodeError) else self.at
            raise self.fault(words_of(fault, ended=end >= len(self.text)), at) from fault
        self._value_at, self.at = self.at, end
        # Counted on from the value before: from the start of `text` each time, it would take quadratic time.
        counted, lines = self._counted
        lines += self.text.count("\n", counted, self._value_at)
        self._counted = self._value_at, lines
        self.line = lines + 1
        detail = _refusal(self.value, self._parser)
        if detail:
            self.value = Unreadable("wrong_type", detail, self.value_text())

    def value_text(self) -> str:
        """What `value` was read from; to be asked before reading on."""
        return self.text[self._value_at : self.at]

    def has_a_row_below(self) -> bool:
        """Whether a later line is an object by itself; reads on until one is, or to the end of the file."""
        while True:
            *lines, last = self.text.split("\n")
            if any(map(self._is_a_row, lines[1:])):
                return True
            # The first line is never asked about: keep the newline before the last one.
            self.at = len(self.text) - len(last) - 1 if lines else len(self.text)
            if not self._grow():
                return bool(lines) and self._is_a_row(last)

    def _is_a_row(self, line: str) -> bool:
        data = line.encode("utf-8", "surrogateescape")
        return line.startswith("{") and isinstance(parse_line(data, self._parser), dict)

    def fault(self, words: str, at: int | None = None) -> DataError:
        """The error of what stands at an index of `text`, by default where reading has come to."""
        lines, columns = self._position(self.at if at is None else at)
        return DataError(f"{self.name}:{lines + 1}: {words} (column {columns + 1}){_ONE_A_LINE}")

    def _position(self, at: int) -> tuple[int, int]:
        """Newlines before an index of `text`, and characters before it in its line."""
        newline = self.text.rfind("\n", 0, at)
        columns = at - newline - 1 if newline >= 0 else self._columns + at
        return self._lines + self.text.count("\n", 0, at), columns

    def _grow(self) -> bool:
        """Drop what was read, and take in a piece; False, and nothing changed, at the end of the file.

        At least as many bytes are taken in as characters are left, so that parsing a value again each time
        stays linear in its size.

        Raises:
            DataError: a value that is larger than any row.
        """
        if len(self.text) - self.at > LARGEST_ROW:
            raise self.fault(f"a value of more than {LARGEST_ROW >> 20} MiB, which is no row")
        data = self._stream.read(max(self._piece, len(self.text) - self.at))
        more = self._decoder.decode(data, final=not data)
        if not data and not more:
            return False
        self._lines, self._columns = self._position(self.at)
        self.text, self.at = self.text[self.at :] + more, 0
        self._counted = 0, self._lines
        return True


LARGEST_ROW = 1 << 26  # bytes of a line, characters of a value: far more than any row needs
LONGEST_CUT = 16  # characters: more than `-Infinity`, `\ud83d\ude42` or the `e+` of a number
TOO_EARLY = "; the text ends too early"
_BLANK = re.compile(r"[ \t\n\r]*")
_ONE_A_LINE = ". Mend it there, or write one row a line (.jsonl): then a bad row costs only itself"


def words_of(error: ValueError | RecursionError, ended: bool = False) -> str:
    """Why `json` refuses a text, without the place. `ended`: the text was good as far as it goes."""
    if isinstance(error, RecursionError):
        return "not JSON that can be read: nested too deeply"
    if not isinstance(error, json.JSONDecodeError):
        limit = sys.get_int_max_str_digits()
        return f"not JSON that can be read: a number of more than {limit} digits; write it as a string"
    words = _CLEARER.get(error.msg) or error.msg.rstrip(": ").removesuffix(" at")
    words = _STRAY.get(error.doc[error.pos : error.pos + 1], words)
    return f"not JSON: {words}{TOO_EARLY if ended else ''}"


_CLEARER = {  # for words of `json` that leave room for doubt
    "Unterminated string starting at": "a string without its closing quote",
    "Invalid control character at": "a bare control character in a string (a line break is written \\n)",
    "Extra data": "more text behind the value; one line holds one row",
}
_STRAY = {  # what stands where JSON should
    "\ufeff": "a byte order mark, as files that were joined hold; remove it",
    "\0": "NUL characters, as a crash while writing leaves; remove them",
}


def _is_unterminated(error: json.JSONDecodeError) -> bool:
    """Whether a string runs to the end of the text; the error's place is then where it begins."""
    return error.msg.startswith("Unterminated string")


def _refusal(value: Any, parser: Parser) -> str:
    """Why the value just read is no row to use; empty where it may be one."""
    if parser.repeated:
        key = f"{parser.repeated[0]!r:.80}"
        return f"the key {key} stands twice in one object, so which value counts is not known; keep one"
    inner = [value] if type(value) in _NESTS else []
    for _ in range(DEEPEST):
        if not inner:
            return ""
        inner = [
            part
            for item in inner
            for part in (item.values() if type(item) is dict else item)
            if type(part) in _NESTS
        ]
    return f"nested more than {DEEPEST} levels deep" if inner else ""


_NESTS = (dict, list)
