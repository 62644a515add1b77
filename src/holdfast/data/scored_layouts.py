"""Layouts whose rows hold several scored completions of one prompt: the pair is drawn here, by a stated rule."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from holdfast.data.faults import RowFault, kind_of
from holdfast.data.messages import (
    checked_text,
    instruction_of,
    number_of,
    refuse_written_list,
    template_inputs,
    value_of,
    with_system,
)
from holdfast.data.preference_layouts import pair_of
from holdfast.data.records import PreferenceRecord, Row, SFTRecord, canonical_json, sft_record, visible

NOT_ANSWERED = "N/A"  # UltraFeedback's word for what is missing


def is_ultrafeedback(row: Row) -> bool:
    return isinstance(row.get("instruction"), str) and isinstance(row.get("completions"), list)


def read_ultrafeedback(row: Row, where: str, seed: int = 0) -> PreferenceRecord:
    """UltraFeedback as first published (arXiv:2310.01377): the best completion against a lower-scored one.

    Completions without a text or a score take no part. The best is the first of the highest `overall_score`; the
    other is drawn evenly from those that score lower, by a hash of the row's texts and the seed, so that neither
    order nor size of the file changes it. The completions' own `custom_system_prompt` says how they were made and
    is no part of the pair.
    """
    scored = _scored_completions(row, 2, "a pair needs two")
    best_score, best = _best(scored)
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


def read_ultrafeedback_best(row: Row, where: str) -> SFTRecord:
    """The best completion as a demonstration: what it is compared with does not matter, so a tie is none."""
    _, best = _best(_scored_completions(row, 1, "a demonstration needs one"))
    prompt = with_system(row, instruction_of(row))
    messages = [*prompt, {"role": "assistant", "content": best}]
    return sft_record(where, messages, len(prompt), **template_inputs(row))


def _best(scored: list[tuple[float, str]]) -> tuple[float, str]:
    """The first of those with the highest score."""
    return max(scored, key=lambda item: item[0])


def _scored_completions(row: Row, least: int, need: str) -> list[tuple[float, str]]:
    """Score and text of each completion that has both; `need` says why there must be so many at least."""
    completions = value_of(row, "completions")
    refuse_written_list(completions, "'completions'")
    if not isinstance(completions, list):
        raise RowFault("wrong_type", f"'completions' must be a list of objects, not {kind_of(completions)}")
    scored = [_score_and_text(item, f"'completions'[{index}]") for index, item in enumerate(completions)]
    found = [(score, text) for score, text in scored if score is not None and text is not None]
    if len(found) < least:
        raise RowFault(
            "missing_key",
            f"{len(found)} of {len(completions)} completions have a text and an 'overall_score'; {need}",
        )
    return found


def _score_and_text(item: Any, name: str) -> tuple[float | None, str | None]:
    """Score and text; None for what is missing: null, empty or `NOT_ANSWERED`."""
    if item is None:
        return None, None
    if not isinstance(item, dict):
        raise RowFault("wrong_type", f"{name} must be an object, not {kind_of(item)}")
    response = value_of(item, "response", name)
    text = checked_text(response, f"{name}.response") if response is not None else ""
    score = number_of(item, "overall_score") if item.get("overall_score") != NOT_ANSWERED else None
    return score, text if visible(text) not in ("", NOT_ANSWERED) else None
