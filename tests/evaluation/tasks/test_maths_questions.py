"""Questions from files in the layouts of the four benchmarks, and from files that are none of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import ConfigError, DataError
from holdfast.evaluation.tasks.maths_questions import BENCHMARKS, read_questions, reference_of


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("She makes 9 * 2 = $<<9*2=18>>18.\n#### 18", "18"),
        ("#### 1,200", "1200"),
        (27.0, "27"),
        (2.5, "2.5"),
        (7, "7"),
        ("025", "025"),
        ("11,\\! 111", "11,\\! 111"),
        (" \\frac{1}{2} ", "\\frac{1}{2}"),
    ],
)
def test_reference(answer: Any, reference: str):
    assert reference_of("rows.jsonl:1", {"answer": answer}) == reference


@pytest.mark.parametrize(
    "row", [{}, {"answer": None}, {"answer": True}, {"answer": "  "}, {"answer": "so ####"}]
)
def test_a_row_without_reference(row: dict[str, Any]):
    with pytest.raises(DataError, match=r"rows\.jsonl:1: 'answer'"):
        reference_of("rows.jsonl:1", row)


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_the_benchmarks_files_are_known(shared_data: Path, name: str):
    found = read_questions(name, shared_data / "maths")
    assert found.known
    assert len(found.questions) == BENCHMARKS[name].questions
    assert len({question.id for question in found.questions}) == len(found.questions)
    assert all(question.text and question.reference for question in found.questions)


def test_categories_where_the_benchmark_has_them(shared_data: Path):
    found = read_questions("math_500", shared_data / "maths")
    assert len({question.category for question in found.questions}) == 7


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_file_of_another_name_and_of_other_content(tmp_path: Path):
    own = write(tmp_path / "own.jsonl", {"question": "1+1?", "answer": 2}, {"problem": "2+2?", "answer": "4"})
    found = read_questions(str(own))
    assert [(q.id, q.text, q.reference) for q in found.questions] == [
        ("own/0", "1+1?", "2"),
        ("own/1", "2+2?", "4"),
    ]
    assert not found.known
    write(tmp_path / "amc23.jsonl", {"problem": "1+1?", "answer": 2})
    assert not read_questions("amc23", tmp_path).known


def test_spacing_and_further_keys_change_no_hash(tmp_path: Path):
    one = write(tmp_path / "one.jsonl", {"problem": "1+1?", "answer": 2.0})
    other = write(tmp_path / "two.jsonl", {"answer": "2", "level": 3, "problem": " 1+1? "})
    assert read_questions(str(one)).sha256 == read_questions(str(other)).sha256


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there is no question in it"),
        ('{"answer": 1}\n', r"own\.jsonl:1: has no text under 'problem' or 'question'"),
        ('{"problem": "1+1?", "answer": 2}\n[1]\n', r"own\.jsonl:2: a question is an object"),
        ('{"problem": \n', r"own\.jsonl:1: not JSON"),
    ],
)
def test_a_bad_file(tmp_path: Path, text: str, words: str):
    (tmp_path / "own.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        read_questions(str(tmp_path / "own.jsonl"))


def test_nothing_of_that_name(tmp_path: Path):
    with pytest.raises(ConfigError, match="did you mean 'gsm8k'"):
        read_questions("gsm8")
    with pytest.raises(DataError, match="has no file of AMC23"):
        read_questions("amc23", tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_questions("amc23", tmp_path / "none")
    with pytest.raises(DataError, match="the hub does not give AIME24"):
        read_questions("aime24")
