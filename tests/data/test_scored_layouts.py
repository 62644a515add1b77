"""UltraFeedback in its three public layouts, from files of their schema; and how a pair is drawn from four."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from holdfast.data.faults import RowFault
from holdfast.data.formats import get_format
from holdfast.data.scored_layouts import read_ultrafeedback
from holdfast.data.sources import read_rows
from holdfast.data.validation import check_rows

QUESTIONS = [("2 + 2?", "4", "5"), ("3 + 3?", "6", "7")]


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def completion(response: str | None, score: float | str | None) -> dict[str, Any]:
    return {
        "annotations": {"helpfulness": {"Rating": "5", "Rationale": "Right."}},
        "custom_system_prompt": "As an AI, be honest.",
        "model": "gpt-4",
        "principle": "honesty",
        "response": response,
        "critique": "Good.",
        "fine-grained_score": 4.0,
        "overall_score": score,
    }


def raw(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "source": "evol_instruct",
        "instruction": question,
        "models": ["gpt-4", "llama-2-7b-chat"],
        "completions": [completion(rejected, 4.0), completion(chosen, 8.5)],
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }


def binarized(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt": question,
        "prompt_id": "ab12",
        "chosen": turns(question, chosen),
        "rejected": turns(question, rejected),
        "messages": turns(question, chosen),
        "score_chosen": 8.5,
        "score_rejected": 4.0,
    }


def conversational(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    sides = {"chosen": turns(question, chosen), "rejected": turns(question, rejected)}
    return sides | {"score_chosen": 8.5, "score_rejected": 4.0}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("layout", "write_row"),
    [("ultrafeedback", raw), ("preference_implicit", binarized), ("preference_implicit", conversational)],
)
def test_the_public_layouts_give_the_same_pairs(
    tmp_path: Path, layout: str, write_row: Any, suffix: str
) -> None:
    path = tmp_path / f"rows.{suffix}"
    rows = [write_row(*question) for question in QUESTIONS]
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    checked = check_rows(read_rows(path))
    assert (checked.format, checked.problems) == (layout, [])
    expected = check_rows(read_rows([conversational(*question) for question in QUESTIONS])).records
    assert [record.id for record in checked.records] == [record.id for record in expected]
    assert [(r.score_chosen, r.score_rejected) for r in checked.records] == [(8.5, 4.0)] * 2


def scored(*scores: float | None, instruction: str = "a") -> dict[str, Any]:
    """Completions called `0`, `1`, ... with these scores."""
    return {"instruction": instruction, "completions": [completion(str(n), s) for n, s in enumerate(scores)]}


def drawn(row: dict[str, Any], seed: int = 0) -> tuple[str, str]:
    record = read_ultrafeedback(row, "here", seed)
    return record.chosen[0]["content"], record.rejected[0]["content"]


def test_the_best_is_the_first_of_the_highest_and_the_other_scores_lower() -> None:
    assert drawn(scored(7, 9, 9)) == ("1", "0")
    assert drawn(scored(7, None, 9)) == ("2", "0")  # what has no score takes no part
    assert {drawn(scored(9, 9, 1, 2, instruction=str(n))) for n in range(50)} == {("0", "2"), ("0", "3")}


def test_the_draw_is_even_and_decided_by_row_and_seed_alone() -> None:
    rows = [scored(9, 3, 2, 1, instruction=f"question {n}") for n in range(300)]
    first = [drawn(row, seed=0)[1] for row in rows]
    assert first == [drawn(row, seed=0)[1] for row in rows]
    # 300 draws of three: 100 each on average, with a standard deviation of sqrt(300 · 2/9) = 8.2
    assert all(60 < first.count(text) < 140 for text in "123")
    assert first != [drawn(row, seed=1)[1] for row in rows]


@pytest.mark.parametrize("nothing", ["", None, "N/A", " \u200b\n"])
def test_completions_without_a_text_take_no_part(nothing: str | None) -> None:
    row = scored(7, 9, 3)
    row["completions"][1]["response"] = nothing
    row["completions"].insert(0, None)
    assert drawn(row) == ("0", "2")
    row["completions"][-1]["overall_score"] = "N/A"
    with pytest.raises(
        RowFault, match="1 of 4 completions have a text and an 'overall_score'; a pair needs two"
    ):
        drawn(row)


def test_a_tie_is_no_pair_but_has_a_best_answer() -> None:
    tie = scored(9, 9) | {"system": "Be brief."}
    with pytest.raises(RowFault, match="all 2 completions with a score have the same, 9"):
        drawn(tie)
    form = get_format("ultrafeedback", "sft")
    assert [turn["content"] for turn in form.to_sft(tie, "here").messages] == ["Be brief.", "a", "0"]
    assert form.to_sft(scored(None, 4), "here").messages[-1]["content"] == "1"
    assert "as demonstrations the first of the best" in form.rule
    # where there is a pair, its chosen side
    pair = form.to_preference(scored(7, 9), "here")
    assert form.to_sft(scored(7, 9), "here") == pair.chosen_as_sft()


def test_rule_and_seed_are_stated() -> None:
    checked = check_rows(read_rows([scored(1, 2), scored(1, 1)]), seed=7)
    assert checked.counts == {"equal_pair": 1}
    assert "the best overall_score" in checked.rules["ultrafeedback"]
    assert "with seed 7" in checked.rules["ultrafeedback"]
    assert check_rows(read_rows([conversational("a", "b", "c")])).rules == {}
