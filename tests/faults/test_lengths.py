"""Nothing to learn, and too much of it: counted by reason, cut by the rule, said and recorded; never a loss of 0.0."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from holdfast import PreferenceConfig, PreferenceTrainer, SFTConfig, SFTTrainer
from holdfast.data.validation import InvalidRows
from holdfast.errors import DataError
from tests.faults.commands import losses_of, record_of, refuse_to_load_models, stage
from tests.training.conftest import rows

GOOD = {"prompt": "the tide?", "chosen": "in", "rejected": "out"}
LONG = "wind " * 80
# Rows that teach nothing: the reason that must be counted, and what is wrong with them.
EMPTY: list[tuple[str, dict[str, Any]]] = [
    ("empty_completion", {"chosen": ""}),
    ("empty_completion", {"rejected": ""}),
    ("empty_completion", {"chosen": " \t\n\u00a0\u2003"}),
    ("empty_completion", {"chosen": "\u200b\ufeff\u2060", "rejected": "\u200b"}),
    ("empty_completion", {"rejected": "\0"}),
    ("empty_completion", {"chosen": []}),
    ("empty_prompt", {"prompt": ""}),
    ("empty_prompt", {"prompt": " \n"}),
    ("empty_prompt", {"prompt": [{"role": "user", "content": "hm"}, {"role": "user", "content": ""}]}),
    ("empty_prompt", {"prompt": [{"role": "system", "content": "Be kind."}]}),
    ("equal_pair", {"rejected": "in"}),
    ("equal_pair", {"rejected": " in\u200b "}),
    ("too_long", {"prompt": LONG}),
    ("too_long", {"prompt": LONG, "chosen": LONG}),
]
EPOCH = ("max_steps=-1", "gradient_accumulation_steps=1")
REASONS = [reason for reason, _ in EMPTY]
COUNTS = {reason: REASONS.count(reason) for reason in REASONS}


def written(file: Path, *more: dict[str, Any], good: int = 8) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows(good), *more]), encoding="utf-8")
    return file


def test_rows_that_teach_nothing_are_counted_by_reason(start: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "rows.jsonl", *(GOOD | changes for _, changes in EMPTY))
    ended = stage("align", start, source, tmp_path / "run")
    assert ended.code == 2
    for number, reason in enumerate(REASONS, start=9):
        assert f"  {source}:{number}: {reason}: " in ended.error
    lenient = stage("align", start, source, tmp_path / "run", "data.validation=lenient", *EPOCH)
    assert lenient.code == 0, lenient.error
    record = record_of(tmp_path / "run")
    assert record["data"]["refused"] == COUNTS
    assert record["stages"]["align"]["rows"]["train"]["examples"] == 8
    losses = losses_of(tmp_path / "run")
    assert len(losses) == 2  # eight rows, four a step
    assert all(math.isfinite(loss) and loss != 0 for loss in losses)


@pytest.mark.parametrize("verb", ["sft", "align"])
@pytest.mark.parametrize("mode", ["strict", "lenient"])
def test_nothing_usable_is_an_error_before_a_model_is_loaded(
    verb: str, mode: str, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = refuse_to_load_models(monkeypatch)
    none = [{"chosen": ""}, {"chosen": " \u200b"}, {"prompt": ""}, {"prompt": LONG}]  # for both stages
    cases: dict[str, tuple[Path, str]] = {
        "bad": (
            written(tmp_path / "bad.jsonl", *(GOOD | row for row in none), good=0),
            "No usable row is left",
        ),
        "blank": (tmp_path / "blank.jsonl", "there are no rows"),
        "nothing": (tmp_path / "nothing.json", "there are no rows"),
        "header": (tmp_path / "header.csv", "there are no rows"),
    }
    (tmp_path / "blank.jsonl").write_text("\n \n\n")
    (tmp_path / "nothing.json").write_text("[]")
    (tmp_path / "header.csv").write_text("prompt,chosen,rejected\n")
    for source, words in cases.values():
        ended = stage(verb, start, source, tmp_path / "run", f"data.validation={mode}")
        assert ended.code == 2
        assert words in ended.error
        assert str(source) in ended.error
    assert asked == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("trainer_class", "config_class"), [(PreferenceTrainer, PreferenceConfig), (SFTTrainer, SFTConfig)]
)
def test_the_trainers_refuse_the_same_before_they_load(
    trainer_class: Any, config_class: Any, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = refuse_to_load_models(monkeypatch)
    for source in (
        [GOOD | {"chosen": ""}],
        written(tmp_path / "rows.jsonl", GOOD | {"prompt": LONG}, good=0),
    ):
        for mode in ("strict", "lenient"):
            args = config_class(
                output_dir=str(tmp_path / "run"),
                validation=mode,
                max_length=64,
                use_cpu=True,
                dataset_num_proc=1,
            )
            with pytest.raises(InvalidRows, match="No usable row is left") as raised:
                trainer_class(model=str(start), args=args, train_dataset=source)
            assert len(raised.value.problems) == 1
    with pytest.raises(DataError, match="no rows"):
        trainer_class(model=str(start), args=args, train_dataset=[])
    assert asked == []


def test_rows_left_out_by_their_length_leave_none(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = refuse_to_load_models(monkeypatch)
    source = written(tmp_path / "rows.jsonl", good=6)
    ended = stage("align", start, source, tmp_path / "run", "data.max_length=8", "data.on_overflow=drop")
    assert ended.code == 2
    assert "6 rows are left out by the length limits (`data.max_length`)" in ended.error
    assert "No usable row is left" in ended.error
    assert asked == []


# One token a byte but for words of the tokenizer's: prompt and answers are counted by the tokenizer itself.
ANSWER = "wind " * 30


def test_completions_over_the_limit_are_cut_by_the_rule_and_the_share_is_recorded(
    start: Path, tmp_path: Path
) -> None:
    """Four rows of eight have an answer over the limit; the prompt, short, stays whole."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(start)

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    limit = 40
    over = [{"prompt": f"{n}?", "chosen": ANSWER, "rejected": f"no {n}"} for n in range(4)]
    under = [{"prompt": f"{n}?", "chosen": "in", "rejected": f"no {n}"} for n in range(4, 8)]
    source = written(tmp_path / "rows.jsonl", *over, *under, good=0)
    prompts = [
        tokens(f"<|im_start|>user\n{n}?<|im_end|>\n<|im_start|>assistant\n")
        for n in range(len(over) + len(under))
    ]
    answer, end = tokens(ANSWER), 1
    assert prompts[0] + answer > limit
    room = [limit - prompts[n] for n in range(4)]
    ended = stage("align", start, source, tmp_path / "run", f"data.max_length={limit}")
    assert ended.code == 0, ended.error
    lengths = record_of(tmp_path / "run")["stages"]["align"]["rows"]["train"]["lengths"]
    chosen = lengths["sides"]["chosen"]
    assert (chosen["rows"], chosen["rows_cut"]) == (8, 4)
    assert chosen["tokens"] == 4 * (answer + end) + 4 * (tokens("in") + end)
    assert chosen["tokens_cut"] == sum(answer + end - kept for kept in room)
    assert lengths["sides"]["prompt"]["tokens_cut"] == lengths["sides"]["rejected"]["tokens_cut"] == 0
    share = chosen["tokens_cut"] / chosen["tokens"]
    assert f"align: 8 rows tokenized; chosen cut in 4 ({share:.0%} of its tokens)" in ended.said
    assert all(loss != 0 for loss in losses_of(tmp_path / "run"))


def test_rows_over_the_limit_are_dropped_or_refused_if_asked_to(start: Path, tmp_path: Path) -> None:
    long = {"prompt": "a?", "chosen": ANSWER, "rejected": "no"}
    source = written(tmp_path / "rows.jsonl", long, long | {"prompt": "b?"}, good=6)
    dropped = stage("align", start, source, tmp_path / "run", "data.max_length=40", "data.on_overflow=drop")
    assert dropped.code == 0, dropped.error
    record = record_of(tmp_path / "run")
    assert record["data"]["splits"]["align"]["rows"] == 6
    assert record["data"]["check"]["truncation"]["dropped"] == 2
    refused = stage(
        "align", start, source, tmp_path / "other", "data.max_length=40", "data.on_overflow=error"
    )
    assert refused.code == 2
    for number in (7, 8):
        assert f"  {source}:{number}: too_long: " in refused.error


def test_pairs_that_the_cut_makes_equal_are_counted_not_trained(start: Path, tmp_path: Path) -> None:
    same = {"prompt": "a?", "chosen": ANSWER + "in", "rejected": ANSWER + "out"}
    source = written(tmp_path / "rows.jsonl", same, good=6)
    ended = stage("align", start, source, tmp_path / "run", "data.max_length=40")
    assert ended.code == 0, ended.error
    record = record_of(tmp_path / "run")
    assert record["data"]["check"]["truncation"]["equal_after_cut"] == 1
    assert record["stages"]["align"]["rows"]["train"]["examples"] == 6
    alone = stage(
        "align", start, written(tmp_path / "one.jsonl", same, good=0), tmp_path / "none", "data.max_length=40"
    )
    assert alone.code == 2
    assert "No usable row is left" in alone.error


def test_the_shortest_rows_that_can_be_trained_are(start: Path, tmp_path: Path) -> None:
    """One prompt token and one answer token are left: a loss, and no division by nothing."""
    source = written(tmp_path / "rows.jsonl", good=6)
    ended = stage(
        "align",
        start,
        source,
        tmp_path / "run",
        "data.max_length=2",
        "data.max_prompt_length=1",
        "objective=simpo",
    )
    assert ended.code == 0, ended.error
    assert all(math.isfinite(loss) and loss != 0 for loss in losses_of(tmp_path / "run"))
