"""Prepared rows: equal to fresh ones, kept by content, and never tokenized twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from holdfast.data.chat import LengthRule, encode_pairs, encode_sft
from holdfast.data.faults import Problem
from holdfast.data.prepared import fingerprint, prepared_pairs, prepared_sft
from holdfast.data.records import PreferenceRecord, preference_record
from holdfast.data.validation import InvalidRows
from holdfast.errors import DataError

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]

RULE = LengthRule(40)


def pair(n: int, chosen: str = "yes") -> PreferenceRecord:
    return preference_record(
        f"rows.jsonl:{n + 1}",
        [{"role": "user", "content": f"question {n}"}],
        [{"role": "assistant", "content": chosen}],
        [{"role": "assistant", "content": "no, " * (n % 7) + "no"}],
    )


PAIRS = [pair(n) for n in range(600)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every call of a tokenizer."""
    made: list[int] = []
    call = PreTrainedTokenizerFast.__call__

    def counting(self: Any, *args: Any, **options: Any) -> Any:
        made.append(1)
        return call(self, *args, **options)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", counting)
    return made


@pytest.mark.parametrize("num_proc", [1, 2])
def test_prepared_pairs_are_the_encoded_ones(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, num_proc: int
) -> None:
    encoded, lengths = encode_pairs(PAIRS, tokenizer, RULE)
    dataset, report = prepared_pairs(PAIRS, tokenizer, RULE, num_proc=num_proc, cache_dir=tmp_path)
    assert dataset.column_names == ["prompt_ids", "chosen_ids", "rejected_ids", "row_index", "row_id"]
    for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert dataset[name][:] == [getattr(row, name) for row in encoded]
    assert dataset["row_index"][:] == list(range(600))
    assert dataset["row_id"][:] == [record.id for record in PAIRS]
    assert report == lengths
    assert dataset.cache_files[0]["filename"].startswith(str(tmp_path))
    assert not [path for path in tmp_path.iterdir() if "." in path.name]  # nothing half-written is left


@pytest.mark.parametrize("train_on", ["last", "all"])
def test_prepared_demonstrations_are_the_encoded_ones(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, train_on: Any
) -> None:
    records = [record.chosen_as_sft() for record in PAIRS[:20]]
    encoded, lengths = encode_sft(records, tokenizer, RULE, train_on=train_on)
    dataset, report = prepared_sft(records, tokenizer, RULE, train_on=train_on, cache_dir=tmp_path)
    assert dataset.column_names == ["input_ids", "completion_mask", "row_index", "row_id"]
    assert dataset["input_ids"][:] == [row.input_ids for row in encoded]
    assert dataset["completion_mask"][:] == [row.completion_mask for row in encoded]
    assert report == lengths


def test_several_processes_give_what_one_gives(tokenizer: PreTrainedTokenizerFast) -> None:
    records = [*PAIRS[:300], pair(7, "yes <|im_start|> 👩‍👩‍👧 \u2028"), *PAIRS[300:]]
    sft = [record.chosen_as_sft() for record in records]
    assert encode_pairs(records, tokenizer, RULE, num_proc=2) == encode_pairs(records, tokenizer, RULE)
    assert encode_sft(sft, tokenizer, RULE, num_proc=2) == encode_sft(sft, tokenizer, RULE)


def test_a_second_start_tokenizes_nothing(
    tmp_path: Path, make_tokenizer: MakeTokenizer, calls: list[int]
) -> None:
    first, report = prepared_pairs(PAIRS, make_tokenizer(bos="<s>"), RULE, cache_dir=tmp_path)
    made = len(calls)
    assert made > 0
    again, same_report = prepared_pairs(PAIRS, make_tokenizer(bos="<s>"), RULE, cache_dir=tmp_path)
    assert len(calls) == made
    assert again[:] == first[:]
    assert same_report == report


def test_each_input_is_part_of_the_key(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    def prepare(
        records: Any = PAIRS[:4], turn: Any = None, rule: LengthRule = RULE, **options: Any
    ) -> set[Path]:
        tokenizer = make_tokenizer(**turn or {})
        prepared_pairs(records, tokenizer, rule, cache_dir=tmp_path, **options)
        return set(tmp_path.iterdir())

    assert len(prepare()) == 1
    assert len(prepare([dataclasses.replace(record, where="elsewhere:1") for record in PAIRS[:4]])) == 1
    assert len(prepare(PAIRS[3::-1])) == 2
    assert len(prepare(turn={"content": "m['content'] | trim"})) == 3
    assert len(prepare(turn={"pad": "<padding>"})) == 4
    assert len(prepare(turn={"merges": [("n", "o")]})) == 5
    assert len(prepare(rule=LengthRule(41))) == 6
    assert len(prepare(rule=LengthRule(40, on_overflow="drop"))) == 7
    assert len(prepare(append_eos=True)) == 8
    assert len(prepare(num_proc=2, problems=[])) == 8  # neither changes the tokens
    sft = [record.chosen_as_sft() for record in PAIRS[:4]]
    for train_on in ("last", "all"):
        prepared_sft(sft, make_tokenizer(), RULE, train_on=train_on, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 10


def test_padding_and_truncation_of_the_last_call_are_not_the_tokenizer(
    make_tokenizer: MakeTokenizer,
) -> None:
    tokenizer = make_tokenizer()
    before = fingerprint(tokenizer)
    tokenizer(["a", "abc"], padding=True, truncation=True, max_length=2)
    assert fingerprint(tokenizer) == before


def test_bad_rows_are_named_where_they_are_now(
    tmp_path: Path, make_tokenizer: MakeTokenizer, calls: list[int]
) -> None:
    tokenizer = make_tokenizer(merges=[("Ċ", "Ċ")])
    records = [pair(n, "\nyes" if n in (3, 400) else "yes") for n in range(500)]
    first: list[Problem] = []
    dataset, _ = prepared_pairs(records, tokenizer, RULE, problems=first, cache_dir=tmp_path)
    assert dataset["row_index"][:] == list(range(498))
    assert [problem.where for problem in first] == ["rows.jsonl:4", "rows.jsonl:401"]
    made = len(calls)
    moved = [dataclasses.replace(record, where=f"moved/{record.where}") for record in records]
    again: list[Problem] = []
    prepared_pairs(moved, tokenizer, RULE, problems=again, cache_dir=tmp_path)
    assert again == [dataclasses.replace(p, where=f"moved/{p.where}") for p in first]
    with pytest.raises(InvalidRows, match="2 of 500 rows cannot be used: template 2") as error:
        prepared_pairs(records, tokenizer, RULE, cache_dir=tmp_path)
    assert error.value.problems == first
    assert len(calls) == made


def test_no_row_left_is_an_error_each_time(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    for _ in range(2):
        with pytest.raises(DataError, match="no row is left to train on\ndropped for their length: 2 rows"):
            prepared_pairs(PAIRS[:2], tokenizer, LengthRule(2, on_overflow="drop"), cache_dir=tmp_path)


def test_a_template_that_fails_everywhere_leaves_no_folder(
    tmp_path: Path, make_tokenizer: MakeTokenizer
) -> None:
    tokenizer = make_tokenizer(bos="<s>", adds_bos=True)  # the template writes no BOS
    with pytest.raises(InvalidRows, match="none of the first 256 rows"):
        prepared_pairs(PAIRS, tokenizer, RULE, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
