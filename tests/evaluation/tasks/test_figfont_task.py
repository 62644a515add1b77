"""Drawn words as a task, and as rows to train on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holdfast.errors import DataError
from holdfast.evaluation.answers.generation import Request
from holdfast.evaluation.tasks.figfont import figlet_fonts, part_of
from holdfast.evaluation.tasks.figfont_task import figfont_task, read_words, write_training_rows
from holdfast.evaluation.tasks.samples import run_task
from tests.evaluation.scripted import Scripted


def test_values_by_hand(tmp_path: Path):
    task = figfont_task(4, seed=1)
    words = {item.id: item.reference for item in task.items}
    wrong = next(iter(words))

    def script(request: Request) -> str:
        return "???" if request.key[0] == wrong else f" {words[str(request.key[0])].lower()}\n"

    results = run_task(task, Scripted(script), tmp_path)
    assert {score.name: score.value for score in results.scores} == {
        "exact match": 0.75,
        "Jaro-Winkler": 0.75,
    }
    assert results.missing["not_compared"] == {}
    assert results.settings["temperature"] == 0
    assert results.hashes["fonts"] == figlet_fonts().sha256
    assert results.why_not_official == ["the words are drawn by lot: the paper's own rows are not used"]


def test_every_word_asked_is_held_out():
    assert {part_of(item.reference) for item in figfont_task(50, seed=2).items} == {"held_out"}


def test_training_rows(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    write_training_rows(30, path, seed=5)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 30
    assert {part_of(row["word"]) for row in rows} == {"train"}
    assert all(row["messages"][-1]["content"] == row["word"] for row in rows)
    write_training_rows(30, tmp_path / "again.jsonl", seed=5)
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()


def test_files_that_cannot_be_written(tmp_path: Path):
    with pytest.raises(DataError, match=r"\.jsonl"):
        write_training_rows(1, tmp_path / "rows.csv")
    (tmp_path / "rows.jsonl").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="is there already"):
        write_training_rows(1, tmp_path / "rows.jsonl")


def test_words_of_a_file(tmp_path: Path):
    (tmp_path / "words.txt").write_text("cat\ndog\n", encoding="utf-8")
    assert read_words(tmp_path / "words.txt") == ["cat", "dog"]
    with pytest.raises(DataError, match="cannot be read"):
        read_words(tmp_path / "none.txt")
