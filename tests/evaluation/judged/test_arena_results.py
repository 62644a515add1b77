"""Arena-Hard's results: what keeps a score from the benchmark's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.evaluation.judged.arena_hard import load_arena
from holdfast.evaluation.judged.arena_run import run_arena
from holdfast.evaluation.judged.judging import Judge
from holdfast.evaluation.judged.run import Run
from tests.evaluation.scripted import Scripted
from tests.evaluation.small_benchmarks import arena_answers, arena_assets

JUDGE = "gpt-4-1106-preview"
ABOVE = "16.7% of the questions missing or unread, above 5%"


@pytest.mark.parametrize(
    ("unread", "limit", "headline", "departs"),
    [
        (True, 0.2, True, True),
        (True, 0.05, False, False),  # withheld: there is no score to bear a name
        (False, 0.2, True, False),
    ],
)
def test_a_score_of_too_few_questions_is_custom(
    tmp_path: Path, unread: bool, limit: float, headline: bool, departs: bool
) -> None:
    arena = load_arena(arena_assets(tmp_path / "arena"))
    judge = Scripted(lambda request: "Hm." if unread and request.key[0] == "q1" else "[[A=B]]")
    run = Run(
        tmp_path / "out",
        "m",
        Judge(JUDGE, arena.settings, judge),
        answers=arena_answers(tmp_path / "m.jsonl"),
        missing_limit=limit,
    )
    found = run_arena(arena, run, arena_answers(tmp_path / "gpt-4-0314.jsonl"))
    assert (found.scores[0].value is not None) is headline
    assert (ABOVE in found.why_not_official) is departs
