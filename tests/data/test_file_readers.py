"""Every kind of file gives the same rows; what cannot be read is located, and the rest survives."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from holdfast.data.faults import Unreadable
from holdfast.data.file_readers import PIECE, read_json
from holdfast.data.sources import file_of, read_rows
from holdfast.errors import DataError

ROWS = [
    {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
    {"prompt": "line\u2028separator, \x00 NUL, 🙂", "chosen": "a\nb", "rejected": 'c,"d"'},
    {"prompt": "3 + 3?", "chosen": "6", "rejected": "7"},
]


def as_json(rows: list[Any]) -> bytes:
    return json.dumps(rows, indent=1, ensure_ascii=False).encode()


def as_jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows: list[Any]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def as_arrow_stream(rows: list[Any]) -> bytes:
    table, sink = pa.Table.from_pylist(rows), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def as_arrow_file(rows: list[Any]) -> bytes:
    table, sink = pa.Table.from_pylist(rows), io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


WRITERS: list[tuple[str, Callable[[list[Any]], bytes]]] = [
    (".json", as_json),
    (".json", as_jsonl),
    (".jsonl", as_jsonl),
    (".csv", as_csv),
    (".parquet", as_parquet),
    (".arrow", as_arrow_stream),
    (".arrow", as_arrow_file),
]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(("suffix", "write"), WRITERS, ids=lambda value: getattr(value, "__name__", value))
def test_files(tmp_path: Path, suffix: str, write: Callable[[list[Any]], bytes], packed: bool) -> None:
    data = write(ROWS)
    path = tmp_path / f"rows{suffix}{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(data) if packed else data)
    found = list(read_rows(path))
    assert [row for _, row in found] == ROWS
    assert all(file_of(where) == str(path) for where, _ in found)


def test_places_are_counted_from_one(tmp_path: Path) -> None:
    lines, array, table = tmp_path / "rows.jsonl", tmp_path / "rows.json", tmp_path / "rows.csv"
    lines.write_bytes(as_jsonl(ROWS[:1]) + b"\n" + as_jsonl(ROWS[1:]))
    array.write_bytes(as_json(ROWS))
    table.write_bytes(as_csv(ROWS))
    assert [where for where, _ in read_rows(lines)] == [f"{lines}:1", f"{lines}:3", f"{lines}:4"]
    assert [where for where, _ in read_rows(array)] == [f"{array}:{n}" for n in (2, 7, 12)]
    # the header is line 1, and the second row spans lines 3 and 4
    assert [where for where, _ in read_rows(table)] == [f"{table}:2", f"{table}:3", f"{table}:5"]
    table.write_text("text\n\na\n\n\nb\n")
    assert [where for where, _ in read_rows(table)] == [f"{table}:3", f"{table}:6"]
    assert [where for where, _ in read_rows(ROWS)] == [f"dataset row {n}" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("line", "reason", "words"),
    [
        (
            b'{"prompt": "a", "chosen": ',
            "unparsable_json",
            "not JSON: Expecting value; the text ends too early .column 27.",
        ),
        (b'{"prompt": "a"} {"prompt": "b"}', "unparsable_json", "more text behind the value"),
        (b"not json", "unparsable_json", "Expecting value"),
        (b'{"prompt": "caf\xe9"}', "invalid_text", "byte 0xe9 at byte 15"),
        (b"[" * 100_000, "unparsable_json", "nested too deeply"),
        (b'{"n": ' + b"9" * 5000 + b"}", "unparsable_json", "digits"),
    ],
)
def test_a_bad_line_is_located_and_the_others_survive(
    tmp_path: Path, line: bytes, reason: str, words: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + as_jsonl(ROWS[:1]) + line + b"\r\n" + as_jsonl(ROWS[1:]))
    found = list(read_rows(path))
    where, bad = found.pop(1)
    assert [row for _, row in found] == ROWS
    assert where == f"{path}:2"
    assert isinstance(bad, Unreadable)
    assert bad.reason == reason
    assert re.search(words, bad.detail)
    assert bad.text == line.decode("utf-8", "backslashreplace")


def test_lines_end_at_newlines_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"text": "a\u2028b\u2029c\x85d\x0be\x1cf"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [found for _, found in read_rows(path)] == [row]


def test_surrogates_in_json_are_passed_on_to_validation(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "\\ud83d\\ude42"}\n{"text": "\\ud800"}\n', encoding="ascii")
    assert [row["text"] for _, row in read_rows(path)] == ["🙂", "\ud800"]


@pytest.mark.parametrize(("suffix", "write"), [(".json", as_json), (".csv", as_csv)])
def test_bytes_that_are_not_utf8_cost_their_row_alone(
    tmp_path: Path, suffix: str, write: Callable[[list[Any]], bytes]
) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(
        write([{"text": "good"}, {"text": "caf?"}, {"text": "fine"}]).replace(b"caf?", b"caf\xe9")
    )
    assert [row["text"] for _, row in read_rows(path)] == ["good", "caf\udce9", "fine"]


def test_parquet_bytes_that_are_not_utf8_cost_their_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    raw = pa.array([b"good", b"caf\xe9", b"fine"], pa.binary())
    text = pa.StringArray.from_buffers(3, *raw.buffers()[1:])
    pq.write_table(pa.table({"text": text}), path)
    first, (where, bad), last = read_rows(path)
    assert (first[1], last[1]) == ({"text": "good"}, {"text": "fine"})
    assert where == f"{path} row 2"
    assert isinstance(bad, Unreadable)
    assert bad.reason == "invalid_text"
    assert bad.detail.startswith("the column 'text' holds bytes that are not UTF-8")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("rows.json", b'[{"text": "a"},\n{"text": }]', "rows.json:2: not JSON: Expecting value .column 10."),
        ("rows.json", b"[" * 100_000, "rows.json:1: .* nested too deeply"),
        ("rows.json", b'[{"text": "a"},\n{"text": ' + b"9" * 5000 + b"}]", "rows.json:2: .* 4300 digits"),
        (
            "rows.json",
            b'{"text":\n "a"\n "b": 1}',
            "rows.json:3: not JSON: Expecting ',' delimiter .column 2.",
        ),
        (
            "rows.json",
            b'{\n"text": "a"}\n{\n"text": "b"}',
            "rows.json:3: not JSON: text behind the value's end",
        ),
        ("rows.json", b'{\n"text": "a"', "rows.json:2: .*ends too early"),
        ("rows.json", b"<html>\n</html>", "rows.json:1: not JSON: Expecting value"),
        ("rows.json.gz", gzip.compress(as_json(ROWS * 1000), mtime=0)[:-300], "damaged gzip file"),
        ("rows.json.gz", gzip.compress(as_jsonl(ROWS * 1000), mtime=0)[:-300], "damaged gzip file"),
        ("rows.csv.gz", gzip.compress(as_csv(ROWS * 1000), mtime=0)[:-300], "damaged gzip file"),
        ("rows.jsonl.gz", b"no gzip", "damaged gzip file"),
        ("rows.jsonl.gz", gzip.compress(as_jsonl(ROWS), mtime=0)[:-12], "damaged gzip file"),
        ("rows.parquet", b"no parquet", "not a parquet file"),
        ("rows.arrow", b"no arrow file", "not an Arrow file"),
        (
            "rows.csv",
            b'text\nfine\n"unclosed\nfine',
            "rows.csv:3: not CSV: unexpected end of data .line 4.*quote",
        ),
        ("rows.csv", b'text\nfine\n"unclosed\n"fine"', "rows.csv:3: not CSV: .* .line 4.*quote"),
        ("rows.csv", b"text\rfine\rfine", "rows.csv:1: not CSV: a carriage return alone ends no line"),
        ("rows.csv", b"text,n,text\na,1,b", "two columns are called 'text'; rename or remove one"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=words):
        list(read_rows(path))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
@pytest.mark.parametrize(
    ("encode", "words"),
    [
        (lambda text: text.encode("utf-16"), "UTF-16 text; save it as UTF-8 .`iconv -f UTF-16 -t UTF-8`."),
        (lambda text: text.encode("utf-16-le"), "UTF-16LE text"),
        (lambda text: text.encode("utf-16-be"), "UTF-16BE text"),
        (lambda text: text.encode("utf-32"), "UTF-32 text"),
        (lambda text: gzip.compress(text.encode()), "packed by gzip; end its name in .gz"),
    ],
)
def test_files_that_are_no_utf8_text_say_what_they_are(
    tmp_path: Path, suffix: str, encode: Callable[[str], bytes], words: str
) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(encode({".jsonl": as_jsonl, ".json": as_json, ".csv": as_csv}[suffix](ROWS).decode()))
    with pytest.raises(DataError, match=f"{re.escape(str(path))}: {words}"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ('{"text": "a"}', ["rows.json:1"]),
        ('\n{"text": "a"}\n\n{"text": "b"}\n', ["rows.json:2", "rows.json:4"]),
        ('{\n "text": [\n  "a"\n ]\n}\n', ["rows.json:1"]),
        # the first line is cut off, or is none; a later one is a row
        ('{"text": "a\n{"text": "b"}', ["rows.json:1", "rows.json:2"]),
        ('{"text":\n{"text": "b"}\n', ["rows.json:1", "rows.json:2"]),
        ('{"text": "a"} more\n{"text": "b"}', ["rows.json:1", "rows.json:2"]),
        ('more\nmore\n{"text": "b"}', ["rows.json:1", "rows.json:2", "rows.json:3"]),
        ("", []),
        (" \n\n", []),
        ("[]", []),
    ],
)
@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_json_files_without_an_array(tmp_path: Path, text: str, places: list[str], piece: int) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    found = [where for where, _ in read_json(path, piece)]
    assert found == [str(tmp_path / place) for place in places]


def test_a_long_unreadable_first_line_does_not_hide_the_rows_below(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"text": oops' + "x" * 10_000 + '\n{"text": "b"}\n')
    (_, bad), (_, good) = read_json(path, piece=100)
    assert isinstance(bad, Unreadable)
    assert good == {"text": "b"}


@pytest.mark.parametrize(
    ("before", "between", "after"), [("[", ",\n", "]"), ("", "\n", "\n")], ids=["array", "lines"]
)
def test_memory_does_not_grow_with_a_json_file(tmp_path: Path, before: str, between: str, after: str) -> None:
    path = tmp_path / "rows.json"
    row = json.dumps({"prompt": "é" * 500, "chosen": "4" * 500, "rejected": "5" * 500}, ensure_ascii=False)
    with path.open("w", encoding="utf-8") as file:
        file.write(before + row)
        file.writelines(between + row for _ in range(14_999))
        file.write(after)
    assert path.stat().st_size > 30_000_000
    tracemalloc.start()
    try:
        rows = sum(1 for _ in read_rows(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert rows == 15_000
    assert peak < 8 * PIECE


def test_damaged_lengths_in_an_arrow_file_cost_their_rows_alone(tmp_path: Path) -> None:
    """Arrow does not look at them by itself: it would read past the end of the file's memory."""
    path = tmp_path / "rows.arrow"
    data = as_arrow_stream([{"n": 1, "text": "good"}, {"n": 2, "text": "also"}, {"n": 3, "text": "fine"}])
    offsets = struct.pack("<4i", 0, 4, 8, 12)
    assert data.count(offsets) == 1
    path.write_bytes(data.replace(offsets, struct.pack("<4i", 0, 4, 1 << 30, 12)))
    (_, first), *others = read_rows(path)
    assert first == {"n": 1, "text": "good"}
    assert [where for where, _ in others] == [f"{path} row 2", f"{path} row 3"]
    for number, (_, bad) in enumerate(others, start=2):
        assert isinstance(bad, Unreadable)
        assert bad.detail.startswith("the column 'text' holds bytes that are not UTF-8, or is damaged: ")
        assert bad.text == json.dumps({"n": number})


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize(("suffix", "write"), WRITERS, ids=lambda value: getattr(value, "__name__", value))
def test_damage_anywhere_is_a_row_fault_or_names_the_file(
    tmp_path: Path, suffix: str, write: Callable[[list[Any]], bytes], seed: int
) -> None:
    """A byte is changed, or the file is cut."""
    random, data = Random(seed), bytearray(write(ROWS))
    place = random.randrange(len(data))
    if seed % 4:
        data[place] = random.randrange(256)
    else:
        del data[place:]
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(data)
    try:
        places = [where for where, _ in read_rows(path)]
    except DataError as error:
        places = [str(error).split(": ")[0]]
    assert {file_of(place) or place for place in places} <= {str(path)}


TURNS = [{"role": "user", "content": "2 + 2?"}]
ANSWER = {"from": "gpt", "value": "4"}


@pytest.mark.parametrize(
    ("row", "decoded"),
    [
        ({"messages": TURNS, "id": "7"}, {"messages"}),
        (
            {"conversations": [], "chosen": ANSWER, "rejected": ANSWER},
            {"conversations", "chosen", "rejected"},
        ),
        ({"prompt": TURNS, "chosen": [ANSWER], "rejected": [ANSWER]}, {"prompt", "chosen", "rejected"}),
        ({"instruction": "a", "completions": [{"response": "b", "overall_score": 1}]}, {"completions"}),
        ({"instruction": "a", "output": "[1, 2]", "history": [["b", "c"]]}, {"history"}),
        # answers that are JSON stay text
        ({"prompt": "a", "chosen": {"a": 1}, "rejected": [{"a": 1}]}, set()),
        ({"prompt": "a", "chosen": ANSWER, "rejected": []}, set()),
        ({"prompt": [1, 2], "chosen": ["b"], "rejected": [*TURNS, 3]}, set()),
    ],
)
def test_csv_cells_of_messages_are_decoded(tmp_path: Path, row: dict[str, Any], decoded: set[str]) -> None:
    cells = {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()}
    path = tmp_path / "rows.csv"
    path.write_bytes(as_csv([cells]))
    [(_, found)] = read_rows(path)
    assert found == cells | {key: row[key] for key in decoded}


@pytest.mark.parametrize(
    "cell", ['[{"role": "user"', "[{'role': 'user', 'content': 'a'}]", "[", '{"a": 1, "a": 2}']
)
def test_csv_cells_that_are_no_json_stay_text(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(as_csv([{"messages": cell}]))
    assert [row for _, row in read_rows(path)] == [{"messages": cell}]


def test_csv_rows_of_the_wrong_width(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("\ufeffprompt,chosen\na,b,c\na\nlong," + "x" * 200_000 + "\n", encoding="utf-8")
    (_, wide), (_, short), (_, long) = read_rows(path)
    assert isinstance(wide, Unreadable)
    assert wide.detail == "3 cells under 2 columns; quote them"
    assert short == {"prompt": "a"}
    assert len(long["chosen"]) == 200_000
