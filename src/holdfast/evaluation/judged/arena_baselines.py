"""Whom each category of Arena-Hard is played against: v2.0 has a baseline for each, and a score for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from holdfast.errors import ConfigError, DataError
from holdfast.evaluation.judged.arena_hard import Arena, ArenaAnswers, read_arena_answers
from holdfast.evaluation.judged.arena_judging import Judged
from holdfast.evaluation.judged.arena_questions import ArenaQuestion
from holdfast.evaluation.judged.arena_scores import ArenaScore, current_score
from holdfast.evaluation.judged.assets import Keyed
from holdfast.evaluation.results import Score
from holdfast.evaluation.statistics import Interval

# Of v2.0; those of v0.1 are `arena_hard.BASELINE_V01`.
OFFICIAL_BASELINES = {"hard_prompt": "o3-mini-2025-01-31", "creative_writing": "gemini-2.0-flash-001"}


@dataclass(frozen=True)
class Baselines:
    """The answers that are played against.

    Attributes:
        answers: of one file, or of several as if of one; `model` then has all their names.
        names: whose answer it is, by question; questions that nobody answers are left out.
    """

    answers: ArenaAnswers
    names: Mapping[str, str]


def read_baselines(paths: Path | Sequence[Path], arena: Arena, name: str | None = None) -> Baselines:
    """Answer files of baselines: each question is played against the one that has an answer to it.

    Where several have one, the official baseline of the question's category is taken, if it is among them: so does the
    tool, whose baselines answer all questions.

    Args:
        name: of the one file's model, where it is not the file's.

    Raises:
        ConfigError: no file, or a name for several.
        DataError: a file of another layout; of several, two of one name, or none or too many have an answer.
    """
    files = [paths] if isinstance(paths, Path) else list(paths)
    if not files:
        raise ConfigError("no baseline is named")
    if len(files) == 1:
        alone = read_arena_answers(files[0], arena, name)
        return Baselines(alone, dict.fromkeys(alone.texts, alone.model))
    if name is not None:
        raise ConfigError(f"'{name}' can name one baseline, and there are {len(files)} files")
    sides = {side.model: side for side in (read_arena_answers(file, arena) for file in files)}
    if len(sides) < len(files):
        raise DataError(f"baselines are told apart by the names of their files: {_quoted(files)}; rename one")
    names = {question.id: _whose(question, sides, files) for question in arena.questions}
    lengths = {at: sides[who].lengths[at] for at, who in names.items() if at in sides[who].lengths}
    answers = ArenaAnswers(
        model=", ".join(sides),
        texts={at: sides[who].texts[at] for at, who in names.items()},
        lengths=lengths,
        oddities=Keyed(
            rows={at: sides[who].oddities.rows[at] for at, who in names.items()},
            twice=[at for side in sides.values() for at in side.oddities.twice],
            extra=[at for side in sides.values() for at in side.oddities.extra],
            missing=[],
        ),
        left_out={at: text for side in sides.values() for at, text in side.left_out.items()},
    )
    return Baselines(answers, names)


def _whose(question: ArenaQuestion, sides: Mapping[str, ArenaAnswers], files: Sequence[Path]) -> str:
    """The model whose answer a question is played against."""
    having = [name for name, side in sides.items() if question.id in side.texts]
    official = OFFICIAL_BASELINES.get(question.category)
    if official in having:
        return official
    if not having:
        raise DataError(
            f"no baseline answers the question '{question.id}' of {question.category}: {_quoted(files)}; name a "
            "further file with --baseline"
        )
    if len(having) > 1:
        raise DataError(
            f"the question '{question.id}' of {question.category} has answers of several baselines, "
            f"{', '.join(having)}, none of which is the official one of its category: leave it in one of the files"
        )
    return having[0]


def _quoted(files: Sequence[Path]) -> str:
    return ", ".join(f"'{file}'" for file in files)


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
