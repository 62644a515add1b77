"""Layouts whose rows hold several scored completions of one prompt: the pair is drawn here, by a stated rule."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from holdfast.data.faults import RowFault, kind_of
from holdfast.data.messages import checked_text, instruction_of, number_of, value_of
from holdfast.data.preference_layouts import pair_of
from holdfast.data.records import PreferenceRecord, Row, canonical_json


def is_ultrafeedback(row: Row) -> bool:
    return isinstance(row.get("instruction"), str) and isinstance(row.get("completions"), list)


def read_ultrafeedback(row: Row, where: str, seed: int = 0) -> PreferenceRecord:
    """UltraFeedback as first published (arXiv:2310.01377): the best completion against a lower-scored one.

    The best is the first of the highest `overall_score`; the other is drawn evenly from those that score lower,
    by a hash of the row's texts and the seed, so that neither order nor size of the file changes it. The
    completions' own `custom_system_prompt` says how they were made and is no part of the pair.
    """
    scored = _scored_completions(row)
    best_score, best = max(scored, key=lambda item: item[0])
    lower = [item for item in scored if item[0] < best_score]
    if not lower:
        raise RowFault(
            "equal_pair",
            f"all {len(scored)} completions with a score have the same, {best_score:g}, so none is preferred",
        )
    prompt = instruction_of(row)
    drawn = blake2b(canonical_json([seed, prompt, scored]).encode(), digest_size=8).digest()
    other_score, other = lower[int.from_bytes(drawn) % len(lower)]
    scores = {"score_chosen": best_score, "score_rejected": other_score}
    return pair_of(
        {**row, **scores},
        where,
        prompt,
        [{"role": "assistant", "content": best}],
        [{"role": "assistant", "content": other}],
    )


def _scored_completions(row: Row) -> list[tuple[float, str]]:
    """Score and text of each completion that has a score."""
    completions = value_of(row, "completions")
    if not isinstance(completions, list):
        raise RowFault("wrong_type", f"'completions' must be a list of objects, not {kind_of(completions)}")
    scored = [_score_and_text(item, f"'completions'[{index}]") for index, item in enumerate(completions)]
    found = [(score, text) for score, text in scored if score is not None]
    if len(found) < 2:
        raise RowFault(
            "missing_key",
            f"{len(found)} of {len(completions)} completions have an 'overall_score'; a pair needs two",
        )
    return found


def _score_and_text(item: Any, name: str) -> tuple[float | None, str]:
    if not isinstance(item, dict):
        raise RowFault("wrong_type", f"{name} must be an object, not {kind_of(item)}")
    return number_of(item, "overall_score"), checked_text(
        value_of(item, "response", name), f"{name}.response"
    )
