"""Whom each category of Arena-Hard is played against: v2.0 has a baseline for each, and a score for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from holdfast.evaluation.judged.arena_hard import Arena
from holdfast.evaluation.judged.arena_judging import Judged
from holdfast.evaluation.judged.arena_scores import ArenaScore, current_score
from holdfast.evaluation.results import Score
from holdfast.evaluation.statistics import Interval

# Of v2.0; those of v0.1 are `arena_hard.BASELINE_V01`.
OFFICIAL_BASELINES = {"hard_prompt": "o3-mini-2025-01-31", "creative_writing": "gemini-2.0-flash-001"}


def baselines_of(arena: Arena, last: Mapping[str, Judged], baseline: str) -> dict[str, set[str]]:
    """The baselines of each category's games; `baseline` where a row names none."""
    found: dict[str, set[str]] = {question.category: set() for question in arena.questions}
    for question in arena.questions:
        if question.id in last:
            found[question.category].add(last[question.id].baseline or baseline)
    return found


def listed(against: Mapping[str, set[str]]) -> str:
    """For people to read."""
    return "; ".join(
        f"{category}: {', '.join(sorted(names))}" for category, names in against.items() if names
    )


def scores_by_category(
    arena: Arena, rows: Sequence[Judged], against: Mapping[str, set[str]], seed: int
) -> list[Score]:
    """The current tool's scores: it takes one category at a time, against that category's baseline."""
    categories = {question.id: question.category for question in arena.questions}
    found = []
    for category, names in against.items():
        title = f"current tool, {category}"
        if len(names) > 1:
            found.append(Score(title, None, note=f"several baselines: {', '.join(sorted(names))}"))
            continue
        score = tool_score(
            title,
            current_score(
                [one.labels for one in rows if categories.get(one.question) == category], seed=seed
            ),
        )
        found.append(replace(score, note=f"{score.note}; against {', '.join(names)}") if names else score)
    return found


def tool_score(name: str, found: ArenaScore | None) -> Score:
    """A tool's own score under its name."""
    if found is None:
        return Score(name, None, note="no game with a label")
    note = f"percent; prints {found.printed}; rows drawn as if independent"
    return Score(name, found.value, Interval(found.low, found.high, found.level), found.rows, note=note)
