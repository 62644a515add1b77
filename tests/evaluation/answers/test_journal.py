"""Rows in a file: none lost, none twice, none half."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import DataError, FolderInUse
from holdfast.evaluation.answers.journal import Journal, by

KEY = by("id", "turn")


def open_at(path: Path) -> Journal:
    return Journal(path, KEY)


def row(number: int, turn: int = 1, text: str = "said") -> dict[str, Any]:
    return {"id": number, "turn": turn, "text": text}


def test_rows_come_back_in_the_files_order(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    with open_at(path) as journal:
        journal.add(row(2))
        journal.add(row(1, text="ü\u2028\n"))
    assert path.read_bytes() == (
        b'{"id": 2, "turn": 1, "text": "said"}\n{"id": 1, "turn": 1, "text": "\\u00fc\\u2028\\n"}\n'
    )
    with open_at(path) as again:
        assert again.rows() == [row(2), row(1, text="ü\u2028\n")]
        assert again.has((1, 1))
        assert not again.has((1, 2))
        assert again.get((2, 1)) == row(2)
        assert again.get((3, 1)) is None
        assert len(again) == 2


def test_a_key_is_given_once(tmp_path: Path) -> None:
    with open_at(tmp_path / "rows.jsonl") as journal:
        journal.add(row(1))
        with pytest.raises(DataError, match=r"row \(1, 1\) already"):
            journal.add(row(1, text="other"))
        assert journal.rows() == [row(1)]
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 1


def test_lists_and_objects_make_keys_too(tmp_path: Path) -> None:
    with Journal(tmp_path / "rows.jsonl", by("judge", "options")) as journal:
        journal.add({"judge": ["gpt", "v1"], "options": {"b": [1], "a": 2}})
        assert journal.has((("gpt", "v1"), (("a", 2), ("b", (1,)))))


def test_a_row_is_kept_as_a_later_run_reads_it(tmp_path: Path) -> None:
    with Journal(tmp_path / "rows.jsonl", by("id")) as journal:
        journal.add({"id": (1, 2)})
        assert journal.rows() == [{"id": [1, 2]}]
        with pytest.raises(ValueError, match="JSON compliant"):
            journal.add({"id": float("nan")})
        assert len(journal) == 1


@pytest.mark.parametrize("cut", range(1, 36))
def test_a_torn_last_line_is_moved_aside(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows.jsonl"
    last = json.dumps(row(2)).encode()
    path.write_bytes(json.dumps(row(1)).encode() + b"\n" + last[:cut])
    with open_at(path) as journal:
        if cut == len(last):  # only the line break is missing
            assert journal.rows() == [row(1), row(2)]
        else:
            assert journal.rows() == [row(1)]
            assert (tmp_path / "rows.jsonl.torn").read_bytes() == last[:cut] + b"\n"
        journal.add(row(3))
    assert path.read_bytes().endswith(b"}\n" + json.dumps(row(3)).encode() + b"\n")
    with open_at(path) as again:
        assert again.has((3, 1))


def test_two_torn_lines_are_both_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for piece in (b'{"a', b"\0\0"):
        with path.open("ab") as file:
            file.write(piece)
        with open_at(path) as journal:
            assert len(journal) == 0
    assert (tmp_path / "rows.jsonl.torn").read_bytes() == b'{"a\n\0\0\n'
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", r"rows.jsonl:2: not JSON.*mend or remove the line"),
        (b"[1]", r"rows.jsonl:2: a row must be an object, not a list"),
        (b'{"id": 1}', r"rows.jsonl:2: a row without its key: KeyError\('turn'\)"),
        (b'{"id": 1, "turn": 1}', r"rows.jsonl:2: the row \(1, 1\) stands on line 1 already"),
        (b"\xff", r"rows.jsonl:2: not UTF-8"),
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "rows.jsonl"
    content = json.dumps(row(1)).encode() + b"\n" + line + b"\n"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        open_at(path)
    assert path.read_bytes() == content
    path.write_bytes(b"")
    open_at(path).close()  # the refusal has not kept the lock


def test_one_journal_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with open_at(path), pytest.raises(FolderInUse, match="being written by another process"):
        open_at(path)
    with open_at(path) as journal:
        journal.add(row(1))
    with pytest.raises(ValueError, match="closed"):
        journal.add(row(2))


def test_a_child_that_lives_on_does_not_keep_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    waiting, end = os.pipe()
    with open_at(path) as journal:
        child = os.fork()
        if child == 0:
            os.close(end)
            os.read(waiting, 1)
            os._exit(0)
        journal.add(row(1))
    try:
        with open_at(path) as again:
            assert again.rows() == [row(1)]
    finally:
        os.close(end)
        os.waitpid(child, 0)
        os.close(waiting)


def test_a_write_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    with open_at(path) as journal:
        journal.add(row(1))
        before = path.read_bytes()
        real = os.write

        def half(handle: int, data: bytes) -> int:
            if len(data) < 20:
                raise OSError(28, "No space left on device")
            return real(handle, data[: len(data) // 2])

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", half)
            with pytest.raises(DataError, match="cannot be written: No space left"):
                journal.add(row(2))
        assert path.read_bytes() == before
        assert not journal.has((2, 1))
        journal.add(row(2))
    with open_at(path) as again:
        assert again.rows() == [row(1), row(2)]


def test_a_row_is_synced_before_add_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    synced: list[bytes] = []
    real = os.fsync

    def note(handle: int) -> None:
        real(handle)
        synced.append(path.read_bytes())

    with open_at(path) as journal:
        monkeypatch.setattr(os, "fsync", note)
        journal.add(row(1))
        assert synced == [json.dumps(row(1)).encode() + b"\n"]


def test_many_threads_add_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with open_at(path) as journal:

        def add(turn: int) -> None:
            for number in range(20):
                journal.add(row(number, turn, "x" * 1000))

        threads = [threading.Thread(target=add, args=(turn,)) for turn in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        held = journal.rows()
    with open_at(path) as again:
        assert again.rows() == held
        assert {KEY(found) for found in held} == {(n, turn) for n in range(20) for turn in range(8)}


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(max_size=20), max_size=6), cut=st.integers(0, 400))
def test_cut_anywhere_whole_rows_stay(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "rows.jsonl"
    with open_at(path) as journal:
        for number, text in enumerate(texts):
            journal.add(row(number, text=text))
        whole = journal.rows()
    content = path.read_bytes()[:cut]
    path.write_bytes(content)
    with open_at(path) as again:
        lines = content.count(b"\n")
        assert len(again) - lines in (0, 1)  # one more where the break alone was cut off
        assert again.rows() == whole[: len(again)]
