"""Prompts of the current tool, whose configuration has a template and no system message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import DataError
from holdfast.evaluation.judged.arena_hard import Arena, load_arena, read_arena_answers
from holdfast.evaluation.judged.arena_judging import game_calls
from holdfast.evaluation.judged.arena_run import run_arena
from holdfast.evaluation.judged.judging import Judge
from holdfast.evaluation.judged.run import Run
from tests.evaluation.scripted import Scripted
from tests.evaluation.small_benchmarks import arena_answers, write_rows

CATEGORIES = {"q0": "hard", "q1": "hard", "q2": "poems"}
TEMPLATE = "P {QUESTION} A {ANSWER_A} B {ANSWER_B} end"
SYSTEMS = {"hard": "weigh the proof", "poems": "weigh the verse"}


def folder_of(tmp_path: Path, system_prompt: str = "") -> Path:
    folder = tmp_path / "arena"
    questions = [
        {"uid": name, "category": category, "cluster": "c", "prompt": f"do {name}"}
        for name, category in CATEGORIES.items()
    ]
    write_rows(folder / "question.jsonl", questions)
    (folder / "judge_config.yaml").write_text(
        f"judge_model: j\ntemperature: 0.0\nmax_tokens: 16000\nregex_patterns: [x]\nprompt_template: '{TEMPLATE}'\n"
        + system_prompt,
        encoding="utf-8",
    )
    return folder


def game(system: str, user: str) -> dict[str, Any]:
    """As the current tool writes one."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return {"score": "A=B", "judgment": {"answer": "[[A=B]]"}, "prompt": messages}


def tool_rows(path: Path, systems: dict[str, str] = SYSTEMS, names: Any = CATEGORIES) -> Path:
    """Judgments of the current tool: m against b."""
    rows = []
    for name in names:
        sides = (f"{name} by b", f"{name} by m")
        games = [
            game(systems[CATEGORIES[name]], f"P do {name} A {first} B {second} end")
            for first, second in (sides, sides[::-1])
        ]
        category = CATEGORIES[name]
        rows.append(
            {"uid": name, "category": category, "judge": "j", "model": "m", "baseline": "b", "games": games}
        )
    return write_rows(path, rows)


def asked(arena: Arena, tmp_path: Path) -> list[list[dict[str, str]]]:
    """Messages of each question's first game."""
    sides = [
        read_arena_answers(arena_answers(tmp_path / f"{name}.jsonl", CATEGORIES), arena) for name in "bm"
    ]
    calls = game_calls(arena, Judge("j", arena.settings), sides[0].texts, sides[1].texts)
    return [call.messages for call in calls[::2]]


def test_a_system_message_by_category(tmp_path: Path) -> None:
    arena = load_arena(folder_of(tmp_path, "system_prompt: {hard: weigh the proof, poems: ''}"))
    hard, _, poems = asked(arena, tmp_path)
    assert hard == [
        {"role": "system", "content": "weigh the proof"},
        {"role": "user", "content": "P do q0 A q0 by b B q0 by m end"},
    ]
    assert [message["role"] for message in poems] == ["user"]  # an empty one is none
    one = load_arena(folder_of(tmp_path, "system_prompt: weigh the proof"))
    assert asked(one, tmp_path)[2][0] == {"role": "system", "content": "weigh the proof"}
    assert arena.hashes["prompts"] != one.hashes["prompts"]


@pytest.mark.parametrize("system_prompt", ["", "system_prompt: {hard: weigh the proof}"])
def test_nobody_is_asked_without_a_system_message(tmp_path: Path, system_prompt: str) -> None:
    with pytest.raises(DataError, match=r"(?s)'system_prompt' for .*poems.*JUDGE_SETTINGS.*poems: TEXT"):
        load_arena(folder_of(tmp_path, system_prompt))


def test_what_is_only_read_may_lack_one(tmp_path: Path) -> None:
    arena = load_arena(folder_of(tmp_path), asks=False)
    assert "the judge's system message is not known: hard, poems" in arena.departures


def test_judgments_say_the_system_messages(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    tool_rows(folder / "model_judgment" / "j" / "m.jsonl")
    arena = load_arena(folder)
    assert arena.systems == SYSTEMS
    assert arena.protocol == "current"
    assert any("as judgments have them" in reason for reason in arena.departures)
    # what the configuration says goes before; files that are named are read first
    named = tool_rows(tmp_path / "named.jsonl", {"hard": "x", "poems": "y"})
    given = load_arena(folder_of(tmp_path, "system_prompt: {hard: of the file}"), judgments=[named])
    assert given.systems == {"hard": "of the file", "poems": "y"}


def test_a_file_for_each_category(tmp_path: Path) -> None:
    files = [tool_rows(tmp_path / f"{name}.jsonl", names=[name]) for name in ("q2", "q1")]
    assert load_arena(folder_of(tmp_path), judgments=files).systems == SYSTEMS


def test_the_tools_rows_are_not_paid_again(tmp_path: Path) -> None:
    folder, out = folder_of(tmp_path), tmp_path / "out"
    tool_rows(out / "model_judgment" / "j" / "m.jsonl", names=["q0", "q2"])
    arena = load_arena(folder, judgments=sorted(out.glob("model_judgment/**/*.jsonl")))
    baseline = arena_answers(tmp_path / "b.jsonl", CATEGORIES)
    answers = arena_answers(tmp_path / "m.jsonl", CATEGORIES)
    judge = Scripted(lambda request: "[[A>B]]")
    judge.model = "j"
    run_arena(arena, Run(out, "m", Judge("j", arena.settings, judge), answers=answers), baseline)
    assert judge.asked == 2  # both games of q1


def test_several_system_messages_for_a_category_are_not_chosen_between(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    first = tool_rows(file, names=["q0"]).read_text("utf-8")
    tool_rows(file, {"hard": "another", "poems": "y"})
    file.write_text(first + file.read_text("utf-8"), encoding="utf-8")
    with pytest.raises(DataError, match=r"for hard .*have 2 .*m\.jsonl.*'system_prompt: .hard: TEXT"):
        load_arena(folder_of(tmp_path), judgments=[file])


@pytest.mark.parametrize(
    "games",
    [
        None,
        [None, {"score": "A=B"}],
        [{"prompt": [3]}, {"prompt": "text"}],
        [{"prompt": [{"role": "user", "content": None}]}],
        [{"user_prompt": "P do q0 A x B y end", "judgment": "old layout", "score": None}],
        [game("of another template", "P: do q0 A x B y end")],
        [game("of another question", "P do q1 A x B y end")],
        [game("of a longer message", "P do q0 A x B y end.")],
    ],
)
def test_rows_that_do_not_tell(tmp_path: Path, games: Any) -> None:
    rows = [
        {"uid": "q0", "games": games},
        {"uid": "elsewhere", "games": [game("s", "P do q0 A x B y end")]},
        {"games": []},
    ]
    arena = load_arena(folder_of(tmp_path), judgments=[write_rows(tmp_path / "odd.jsonl", rows)], asks=False)
    assert arena.systems == {}


def test_answers_may_hold_anything(tmp_path: Path) -> None:
    rows = [{"uid": "q0", "games": [game("s", "P do q0 A .*\n B (\n B P do q0 end end")]}]
    file = write_rows(tmp_path / "odd.jsonl", rows)
    assert load_arena(folder_of(tmp_path), judgments=[file], asks=False).systems == {"hard": "s"}


def test_a_configuration_without_a_template_is_judged_by_our_prompt(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    (folder / "judge_config.yaml").write_text("judge_model: j\nsystem_prompt: s\n", encoding="utf-8")
    arena = load_arena(folder)
    assert arena.prompt.name == "holdfast-pair-v1"
    assert "a judge prompt of holdfast's own wording" in arena.departures
