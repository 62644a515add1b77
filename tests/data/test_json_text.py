"""JSON in lines and in pieces: the values of `json`, and faults in words and with places that can be used."""

from __future__ import annotations

import io
import json
import re
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from holdfast.data.faults import DEEPEST, Unreadable
from holdfast.data.file_readers import read_json
from holdfast.data.json_text import JsonWindow, Parser, parse_line, words_of
from holdfast.data.sources import file_of
from holdfast.errors import DataError


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        ('{"a": ', "not JSON: Expecting value; the text ends too early (column 7)"),
        ('{"a": "b', "not JSON: a string without its closing quote; the text ends too early (column 7)"),
        ('{"a"', "not JSON: Expecting ':' delimiter; the text ends too early (column 5)"),
        ('{"a": tru}', "not JSON: Expecting value (column 7)"),
        ('{"a": 1 "b": 2}', "not JSON: Expecting ',' delimiter (column 9)"),
        (
            '{"a": "b\tc"}',
            "not JSON: a bare control character in a string (a line break is written \\n) (column 9)",
        ),
        ('{"a": "\\x"}', "not JSON: Invalid \\escape (column 8)"),
        ('{"a": "\\u12G4"}', "not JSON: Invalid \\uXXXX escape (column 9)"),
        ("{'a': 1}", "not JSON: Expecting property name enclosed in double quotes (column 2)"),
        ('{"a": 1} {"b": 2}', "not JSON: more text behind the value; one line holds one row (column 10)"),
        (
            '\ufeff{"a": 1}',
            "not JSON: a byte order mark, as files that were joined hold; remove it (column 1)",
        ),
        ("\0\0\0", "not JSON: NUL characters, as a crash while writing leaves; remove them (column 1)"),
        (
            "[",
            "not JSON: Expecting value; the text ends too early (column 2); "
            "a file that is one array is to be named .json",
        ),
        (
            '{"n": ' + "9" * 10_000 + "}",
            "not JSON that can be read: a number of more than 4300 digits; write it as a string",
        ),
        ("[" * 100_000, "not JSON that can be read: nested too deeply"),
        ('{"a":' * 100_000, "not JSON that can be read: nested too deeply"),
    ],
)
def test_what_is_wrong_with_a_line(line: str, detail: str) -> None:
    found = parse_line(line.encode(), Parser())
    assert found == Unreadable("unparsable_json", detail, line)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("Invalid \\escape: ", "Invalid \\escape"),  # of the decoder written in Python
        ("Illegal trailing comma before end of object", None),  # from Python 3.13 on
        ("Illegal trailing comma before end of array", None),
        ("Something new at", "Something new"),
    ],
)
def test_words_of_other_versions_of_python(message: str, words: str | None) -> None:
    assert words_of(JSONDecodeError(message, '{"a": 1,}', 7)) == f"not JSON: {words or message}"


def test_bytes_that_are_no_utf8_are_placed() -> None:
    found = parse_line(b'{"a": "caf\xe9"}', Parser())
    detail = "not UTF-8: byte 0xe9 at byte 10 of the line; save the text as UTF-8"
    assert found == Unreadable("invalid_text", detail, '{"a": "caf\\xe9"}')


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('{"chosen": "a", "chosen": "b"}', "chosen"),
        ('{"chosen": "a", "chosen": "a"}', "chosen"),
        ('{"prompt": [{"role": "user", "content": "a", "role": "system"}]}', "role"),
    ],
)
def test_a_key_that_stands_twice_is_refused(line: str, key: str) -> None:
    parser = Parser()
    found = parse_line(line.encode(), parser)
    assert (found.reason, found.text) == ("wrong_type", line)
    assert found.detail.startswith(f"the key '{key}' stands twice in one object")
    # the next line is read afresh, also behind one that fails within
    assert parse_line(b'{"a": {"b": 1, "b": 2}, ', parser).reason == "unparsable_json"
    assert parse_line(b'{"a": 1}', parser) == {"a": 1}


def nested(levels: int, text: str = "") -> str:
    """A row of so many levels, lists and objects in turn."""
    for level in range(levels):
        text = f"[{text}]" if level % 2 else f'{{"a": {text or 1}}}'
    return text


def test_rows_may_not_nest_without_end() -> None:
    assert parse_line(nested(DEEPEST).encode(), Parser()) == json.loads(nested(DEEPEST))
    found = parse_line(nested(DEEPEST + 1).encode(), Parser())
    assert (found.reason, found.detail) == ("wrong_type", f"nested more than {DEEPEST} levels deep")
    assert parse_line(('{"text": "' + "[{" * 1000 + '"}').encode(), Parser()) == {"text": "[{" * 1000}


values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
arrays = st.lists(values, max_size=6)
pieces = st.integers(1, 40)
layouts = st.sampled_from([{"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json") / "rows.json"


@given(arrays, pieces, layouts, st.text(" \t\r\n", max_size=9), st.booleans())
@example([1.5e-7, -12, 3], 1, {"separators": (",", ":")}, "", False)
@example([float("inf"), float("-inf"), True, None], 1, {"separators": (",", ":")}, "", False)
@example(["🙂\ud83d"], 2, {}, "\n", True)
@example([], 1, {}, " ", False)
def test_an_array_is_read_as_json_reads_it(
    path: Path, rows: list[Any], piece: int, layout: dict[str, Any], blank: str, marked: bool
) -> None:
    text = json.dumps(rows, **layout)
    path.write_bytes(b"\xef\xbb\xbf" * marked + (blank + text + blank).encode())
    found = list(read_json(path, piece))
    assert [row for _, row in found] == json.loads(text)
    places = [where for where, _ in found]
    assert len(set(places)) == len(rows)
    assert {file_of(place) for place in places} <= {str(path)}


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_a_row_of_an_array_stands_on_the_line_it_begins_on(path: Path, piece: int) -> None:
    path.write_text('\n[{"a": 1}, {"a": 2},\n {"a":\n 3},\n\n{"a": 4}, {"a":\n 5}, {"a": 6}\n]')
    places = [where.removeprefix(str(path)) for where, _ in read_json(path, piece)]
    assert places == [":2", ":2 row 2", ":3", ":6", ":6 row 5", ":7"]


def test_nan_is_read_as_json_reads_it(path: Path) -> None:
    path.write_text("[NaN, -Infinity]")
    (_, first), (_, second) = read_json(path, 1)
    assert (first != first, second) == (True, float("-inf"))


@given(arrays, pieces, st.data())
def test_a_damaged_array_fails_where_json_fails(path: Path, rows: list[Any], piece: int, data: Any) -> None:
    good = json.dumps(rows, indent=data.draw(st.sampled_from([None, 1])), ensure_ascii=False).encode()
    start = data.draw(st.integers(1, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 3)) | st.just(len(good)))
    damaged = (
        good[:start] + data.draw(st.binary(max_size=2) | st.sampled_from([b",", b"]", b"\n"])) + good[end:]
    )
    path.write_bytes(damaged)
    found: Any
    wanted: Any
    try:
        wanted = json.loads(damaged.decode("utf-8", "surrogateescape"))
    except JSONDecodeError as error:
        # from Python 3.13 on, a comma without a row behind it is placed at the comma
        assume(not error.msg.startswith("Illegal trailing comma"))
        wanted = (error.lineno, error.colno)
    try:
        found = [row for _, row in read_json(path, piece)]
        assume(not any(isinstance(row, Unreadable) for row in found))  # a key stands twice now
    except DataError as error:
        place = re.search(r"rows\.json:(\d+): not JSON: .* \(column (\d+)\)\. Mend it there", str(error))
        found = place and (int(place[1]), int(place[2]))
    assert found == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"a": 1},\n]', ":2: not JSON: a comma with no row behind it (column 1)"),
        ('[{"a": 1}\n {"a": 2}]', ":2: not JSON: Expecting ',' or ']' behind the row (column 2)"),
        ('[{"a": 1}]\n\n]', ":3: not JSON: text behind the bracket that closes the array (column 1)"),
        (
            '[{"a": 1}',
            ":1: not JSON: Expecting ',' or ']' behind the row; the text ends too early (column 10)",
        ),
        (
            '[\n{"a": "b',
            ":2: not JSON: a string without its closing quote; the text ends too early (column 7)",
        ),
        ("[", ":1: not JSON: Expecting value; the text ends too early (column 2)"),
        ("[,1]", ":1: not JSON: Expecting value (column 2)"),
        ("[1,\n  " + "[" * 100_000, ":2: not JSON that can be read: nested too deeply (column 3)"),
        ("[1,\n " + "9" * 10_000 + "]", ":2: not JSON that can be read: a number of more than 4300 digits"),
    ],
)
@pytest.mark.parametrize("piece", [1000, 1 << 20])
def test_faults_of_an_array_name_line_and_column(path: Path, text: str, words: str, piece: int) -> None:
    path.write_text(text)
    with pytest.raises(DataError) as fault:
        list(read_json(path, piece))
    assert str(fault.value).startswith(f"{path}{words}")


def test_half_a_character_at_the_end_is_text_behind_the_array(path: Path) -> None:
    path.write_bytes(b"[1]" + "é".encode()[:1])
    with pytest.raises(DataError, match=r":1: not JSON: text behind the bracket .* .column 4."):
        list(read_json(path))


def test_rows_before_a_fault_are_given(path: Path) -> None:
    path.write_text('[{"a": 1}, {"a": 2}, {"a": }]')
    rows = read_json(path)
    assert [next(rows)[1], next(rows)[1]] == [{"a": 1}, {"a": 2}]
    with pytest.raises(DataError, match="column 28"):
        next(rows)


def test_a_row_of_an_array_with_a_key_twice_costs_itself_alone(path: Path) -> None:
    path.write_text('[{"a": 1}, {"a": {"b": 1, "b": 2}}, {"a": 3}]')
    for piece in (1, 20, 1000):
        first, (where, bad), last = read_json(path, piece)
        assert (first[1], last[1], where) == ({"a": 1}, {"a": 3}, f"{path}:1 row 2")
        assert isinstance(bad, Unreadable)
        assert (bad.reason, bad.text) == ("wrong_type", '{"a": {"b": 1, "b": 2}}')


class Counted(io.BytesIO):
    """Counts the pieces that are asked for."""

    pieces = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.pieces += 1
        return super().read(size)


def test_a_large_value_is_taken_in_by_growing_pieces() -> None:
    stream = Counted(b'["' + b"x" * 1_000_000 + b'"]')
    window = JsonWindow("rows.json", stream, 10)
    assert window.next() == "["
    window.read()
    assert len(window.value[0]) == 1_000_000
    assert stream.pieces < 25  # each doubles what is there: log2(1,000,000 / 10) is 17
