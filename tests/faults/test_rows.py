"""Malformed rows among many: strict lists each by its line and makes nothing; lenient trains exactly the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from holdfast import PreferenceConfig, PreferenceTrainer
from holdfast.models.tiny import tiny_model
from tests.faults.commands import holdfast, lines_named, refuse_to_load_models, stage
from tests.faults.training_cases import watch_rows
from tests.training.conftest import WORDS

ROWS, EVERY = 5000, 100  # one row in a hundred is bad


def good(number: int) -> dict[str, Any]:
    """A row like no other."""
    return {"prompt": f"{WORDS[number % 7]} {number}?", "chosen": WORDS[number % 5], "rejected": "no wind"}


def line(**changes: Any) -> bytes:
    return json.dumps(good(0) | changes, ensure_ascii=False).encode("utf-8", "surrogatepass")


LONG = " ".join(WORDS * 8)
# Twelve ways of being malformed: the reason that must be given, and the line.
WAYS: list[tuple[str, bytes]] = [
    ("unparsable_json", line()[:-20]),
    ("unparsable_json", b'{"prompt": NULL, "chosen": "a", "rejected": "b"}'),
    ("invalid_text", line(prompt="a byte").replace(b"byte", b"\xff\xc0")),
    ("invalid_text", json.dumps(good(0) | {"chosen": "half \ud83d"}).encode()),
    ("wrong_type", line(rejected=7)),
    ("wrong_type", line()[:-1] + b', "chosen": "a second one"}'),
    ("missing_key", b'{"prompt": "the tide?", "chosen": "in"}'),
    ("unknown_role", line(prompt=[{"role": "robot", "content": "the tide?"}])),
    ("turn_order", line(prompt=[{"role": "assistant", "content": "the tide?"}])),
    ("empty_completion", line(chosen=" \u200b\n")),
    ("equal_pair", line(rejected=good(0)["chosen"])),
    ("too_long", line(prompt=LONG)),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Line 50, 150, ... is bad, in each of the twelve ways in turn."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [json.dumps(good(number)).encode() for number in range(ROWS)]
    for turn, number in enumerate(range(EVERY // 2 - 1, ROWS, EVERY)):
        lines[number] = WAYS[turn % len(WAYS)][1]
    file.write_bytes(b"\n".join(lines) + b"\n")
    return file


BAD = list(range(EVERY // 2, ROWS, EVERY))
REASONS = [WAYS[turn % len(WAYS)][0] for turn in range(len(BAD))]


def test_strict_lists_each_bad_row_by_its_line_before_a_model_is_loaded(
    start: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = refuse_to_load_models(monkeypatch)
    ended = stage("align", start, source, tmp_path / "run")
    assert ended.code == 2
    assert list(lines_named(ended.error, source)) == BAD
    for number, reason in zip(BAD, REASONS, strict=True):
        assert f"  {source}:{number}: {reason}: " in ended.error
    counts = {reason: REASONS.count(reason) for reason in REASONS}
    assert all(f"{reason} {count}" in ended.error.splitlines()[0] for reason, count in counts.items())
    assert not (tmp_path / "run").exists()
    assert asked == []


def test_check_counts_the_same(start: Path, source: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    ended = holdfast("check", source, "--model", start, "--max-length", "64", "--quarantine", bad, "--json")
    report = json.loads(ended.said)
    assert ended.code == 2
    assert (report["rows"], report["good"]) == (ROWS, ROWS - len(BAD))
    assert report["refused"] == {reason: REASONS.count(reason) for reason in REASONS}
    kept = [json.loads(entry) for entry in bad.read_text(encoding="ascii").splitlines()]
    assert [entry["where"] for entry in kept] == [f"{source}:{number}" for number in BAD]
    assert [entry["reason"] for entry in kept] == REASONS


def test_lenient_trains_exactly_the_good_rows(start: Path, source: Path, tmp_path: Path) -> None:
    trainer = PreferenceTrainer(
        model=tiny_model("qwen3", 320, hidden_size=16, layers=1),
        args=PreferenceConfig(
            output_dir=str(tmp_path / "run"),
            objective="simpo",
            validation="lenient",
            max_length=64,
            per_device_train_batch_size=250,
            gradient_accumulation_steps=1,
            dataset_num_proc=2,
            cache_dir=str(tmp_path / "cache"),
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
        ),
        train_dataset=str(source),
        processing_class=str(start),
    )
    places = [record.where for record in trainer.prepared["train"].rows or []]
    assert places == [f"{source}:{number}" for number in range(1, ROWS + 1) if number not in BAD]
    batches = watch_rows(trainer)
    trainer.train()
    trained = [row for _, *batch in batches for row in batch]
    assert sorted(trained) == list(range(ROWS - len(BAD)))  # each good row, once
    quarantine = (tmp_path / "run" / "quarantine.jsonl").read_text(encoding="ascii").splitlines()
    assert [json.loads(entry)["where"] for entry in quarantine] == [f"{source}:{number}" for number in BAD]
    assert trainer.prepared["train"].report["refused"] == {name: REASONS.count(name) for name in REASONS}


def test_where_all_rows_are_bad_the_first_are_listed_and_nothing_is_made(start: Path, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_bytes(b"\n".join(bad for _, bad in WAYS) + b"\n")
    for mode in ("strict", "lenient"):
        ended = stage("align", start, source, tmp_path / "run", f"data.validation={mode}")
        assert ended.code == 2
        assert list(lines_named(ended.error, source)) == list(range(1, len(WAYS) + 1))
        assert ended.error.endswith("No usable row is left.")
        assert not (tmp_path / "run").exists()
