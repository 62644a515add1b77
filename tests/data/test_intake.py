"""What a run takes in: equal to the plain forms, kept by content, never tokenized twice, every bad row named."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from holdfast.data.chat import LengthRule, encode_pairs, encode_sft
from holdfast.data.check import check_source
from holdfast.data.examine import checker
from holdfast.data.intake import Intake, fingerprint, take_in, take_in_records
from holdfast.data.records import PreferenceRecord, preference_record
from holdfast.data.sources import read_rows
from holdfast.data.splits import digest, split_by_prompt
from holdfast.data.validation import InvalidRows, check_rows
from holdfast.errors import DataError

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]

RULE = LengthRule(40)
TOKENS = ("prompt_ids", "chosen_ids", "rejected_ids")


def row(n: int, chosen: str = "yes") -> dict[str, Any]:
    return {"prompt": f"question {n}", "chosen": chosen, "rejected": "no, " * (n % 7) + "no"}


def pair(n: int, chosen: str = "yes") -> PreferenceRecord:
    def turn(role: str, content: str) -> list[dict[str, Any]]:
        return [{"role": role, "content": content}]

    own = row(n, chosen)
    sides = turn("assistant", own["chosen"]), turn("assistant", own["rejected"])
    return preference_record(f"rows.jsonl:{n + 1}", turn("user", own["prompt"]), *sides)


PAIRS = [pair(n) for n in range(600)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row(n)) + "\n" for n in range(600)), encoding="utf-8")
    return path


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


def folders(cache: Path) -> list[Path]:
    return sorted((cache / "rows").iterdir())


@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_source_is_what_the_plain_forms_make_of_it(
    source: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, num_proc: int
) -> None:
    records = check_rows(read_rows(source)).records
    encoded, lengths = encode_pairs(records, tokenizer, RULE)
    taken = take_in(
        source, checker("preference", tokenizer, RULE), num_proc=num_proc, cache_dir=tmp_path / "cache"
    )
    assert list(taken.rows) == records
    dataset = taken.rows.tokens
    assert dataset.column_names == [*TOKENS, "row_index", "row_id"]
    for name in TOKENS:
        assert dataset[name][:] == [getattr(own, name) for own in encoded]
    assert dataset["row_index"][:] == list(range(600))
    assert dataset["row_id"][:] == taken.rows.ids == [record.id for record in records]
    assert taken.rows.lengths() == lengths
    assert taken.rows.digest() == digest(records) == taken.report.digest
    report = check_source(source, tokenizer=tokenizer, rule=RULE, num_proc=1)
    assert dataclasses.replace(taken.report, seconds=0.0) == dataclasses.replace(report, seconds=0.0)
    (folder,) = folders(tmp_path / "cache")  # nothing half-written beside it
    assert {path.name for path in folder.iterdir()} == {"rows.arrow", "report.json", "quarantine.jsonl"}


@pytest.mark.parametrize("train_on", ["last", "all"])
def test_demonstrations_of_pairs(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, train_on: Any) -> None:
    records = [record.chosen_as_sft() for record in PAIRS[:20]]
    encoded, lengths = encode_sft(records, tokenizer, RULE, train_on=train_on)
    work = checker("sft", tokenizer, RULE, train_on=train_on)
    taken = take_in_records(PAIRS[:20], work, cache_dir=tmp_path)
    assert taken.rows.tokens["input_ids"][:] == [own.input_ids for own in encoded]
    assert taken.rows.tokens["completion_mask"][:] == [own.completion_mask for own in encoded]
    assert taken.rows.lengths() == lengths
    assert list(taken.rows) == records


def test_sides_are_those_of_the_plain_split(
    source: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    shares = {"held_out": 0.1, "sft": 0.3, "align": 0.6}
    work = checker("preference", tokenizer, RULE, seed=3)
    taken = take_in(source, work, cache_dir=tmp_path / "cache")
    plain = split_by_prompt(list(taken.rows), shares, seed=3)
    sides = taken.rows.split(shares)
    assert {name: list(side) for name, side in sides.items()} == plain
    align = sides["align"]
    encoded, lengths = encode_pairs(plain["align"], tokenizer, RULE)
    assert align.tokens["chosen_ids"][:] == [own.chosen_ids for own in encoded]
    assert align.lengths() == lengths
    again = take_in_records(align, checker("sft", tokenizer, RULE), cache_dir=tmp_path / "cache")
    assert list(again.rows) == [record.chosen_as_sft() for record in plain["align"]]


def test_a_second_start_tokenizes_nothing(
    source: Path, tmp_path: Path, make_tokenizer: MakeTokenizer, calls: list[int]
) -> None:
    def start() -> Intake:
        work = checker("preference", make_tokenizer(bos="<s>"), RULE)
        return take_in(source, work, num_proc=1, cache_dir=tmp_path / "cache")

    first = start()
    made = len(calls)
    assert made > 0
    again = start()
    assert len(calls) == made
    assert again.rows.tokens[:] == first.rows.tokens[:]
    assert again.report == first.report


def test_each_input_is_part_of_the_key(source: Path, tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    cache = tmp_path / "cache"

    def count(
        rows: Any = source,
        turn: Any = None,
        rule: LengthRule = RULE,
        kind: Any = "preference",
        **options: Any,
    ) -> int:
        reading = {name: options.pop(name) for name in ("format", "num_proc") if name in options}
        work = checker(kind, make_tokenizer(**turn or {}), rule, **options)
        take_in(rows, work, cache_dir=cache, **reading)
        return len(folders(cache))

    assert count() == 1
    assert count(num_proc=2) == 1  # changes nothing of the result
    assert count(turn={"content": "m['content'] | trim"}) == 2
    assert count(turn={"pad": "<padding>"}) == 3
    assert count(turn={"merges": [("n", "o")]}) == 4
    assert count(rule=LengthRule(41)) == 5
    assert count(rule=LengthRule(40, on_overflow="drop")) == 6
    assert count(append_eos=True) == 7
    assert count(seed=1) == 8
    assert count(vocab_size=1000) == 9
    assert count(kind="sft") == 10
    assert count(kind="sft", train_on="all") == 11
    assert count(format="preference_text") == 12
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(source.read_bytes())
    assert count(copy) == 13  # the places of its rows are others
    copy.write_bytes(source.read_bytes() + json.dumps(row(600)).encode())
    assert count(copy) == 14
    assert count([row(n) for n in range(3)]) == 15
    assert count([row(n) for n in range(3)]) == 15
    assert count([row(n) for n in range(4)]) == 16


def test_rows_that_can_be_read_once_are_all_there(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    taken = take_in((row(n) for n in range(5)), checker("preference", tokenizer), cache_dir=tmp_path)
    assert len(taken.rows) == 5
    once: Iterator[PreferenceRecord] = iter(PAIRS[:5])
    assert len(take_in_records(once, checker("preference", tokenizer), cache_dir=tmp_path).rows) == 5


def test_damage_is_found_and_made_good(
    source: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    cache, work = tmp_path / "cache", checker("preference", tokenizer, RULE)
    tokens = take_in(source, work, cache_dir=cache).rows.tokens[:]
    file = folders(cache)[0] / "rows.arrow"
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-9] + b"\x01" + whole[-8:], b""):
        file.unlink()  # the first rows are still mapped
        file.write_bytes(damaged)
        caplog.clear()
        assert take_in(source, work, cache_dir=cache).rows.tokens[:] == tokens
        assert "damaged" in caplog.text
        assert file.read_bytes() == whole


def test_padding_and_truncation_of_the_last_call_are_not_the_tokenizer(
    make_tokenizer: MakeTokenizer,
) -> None:
    tokenizer = make_tokenizer()
    before = fingerprint(tokenizer)
    tokenizer(["a", "abc"], padding=True, truncation=True, max_length=2)
    assert fingerprint(tokenizer) == before


def test_bad_rows_of_text_and_of_tokens_stand_in_one_report(
    source: Path, tmp_path: Path, make_tokenizer: MakeTokenizer, calls: list[int]
) -> None:
    tokenizer = make_tokenizer(merges=[("Ċ", "Ċ")])
    lines = source.read_text().splitlines()
    lines[3] = json.dumps(row(3, "\nyes"))  # the tokenizer merges across prompt and completion
    lines[300] = "{not json"
    source.write_text("\n".join(lines))
    for _ in range(2):  # made, and read again
        taken = take_in(source, checker("preference", tokenizer, RULE), num_proc=1, cache_dir=tmp_path / "c")
        made = len(calls)
        assert (taken.report.good, len(taken.rows)) == (598, 598)
        assert taken.rows.tokens["row_index"][:] == list(range(598))
        with pytest.raises(InvalidRows) as error:
            taken.require("strict")
        assert [(p.where, p.reason) for p in error.value.problems] == [
            (f"{source}:4", "template"),
            (f"{source}:301", "unparsable_json"),
        ]
        for place in ("rows.jsonl:4: template", "rows.jsonl:301: unparsable_json", "2 of 600 rows", "598"):
            assert place in str(error.value)
    assert len(calls) == made
    quarantine = tmp_path / "set" / "aside.jsonl"
    taken.require("lenient", quarantine)
    kept = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert [entry["where"] for entry in kept] == [f"{source}:4", f"{source}:301"]
    assert kept[0]["row"] == row(3, "\nyes")


@pytest.mark.parametrize("mode", ["strict", "lenient"])
def test_no_row_left_is_an_error_each_time(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, mode: Any
) -> None:
    work = checker("preference", tokenizer, LengthRule(2, on_overflow="drop"))
    for _ in range(2):
        taken = take_in([row(1), row(2)], work, cache_dir=tmp_path)
        with pytest.raises(DataError, match="2 rows are left out by the length limits .*\nNo usable row"):
            taken.require(mode)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(DataError, match="empty.jsonl: there are no rows"):
        take_in(empty, work, cache_dir=tmp_path).require(mode)


def test_a_template_that_fails_everywhere_is_told_in_a_few_lines(
    source: Path, tmp_path: Path, make_tokenizer: MakeTokenizer
) -> None:
    tokenizer = make_tokenizer(bos="<s>", adds_bos=True)  # the template writes no BOS
    taken = take_in(source, checker("preference", tokenizer, RULE), cache_dir=tmp_path / "cache")
    with pytest.raises(InvalidRows, match="600 of 600 rows cannot be used: template 600") as error:
        taken.require("strict")
    assert str(error.value).count("\n") == 22  # twenty rows, how many more, and that none is left


def test_an_interrupted_intake_leaves_nothing(
    source: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.data.intake.report_on", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        take_in(source, checker("preference", tokenizer, RULE), cache_dir=tmp_path / "cache")
    assert folders(tmp_path / "cache") == []
