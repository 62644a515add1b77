"""`holdfast eval arena_hard` with the current tool's files: its configuration, its judgments, a baseline a category."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from holdfast.cli.main import app
from holdfast.errors import DataError
from tests.evaluation.small_benchmarks import arena_answers, write_rows
from tests.faults.scripted_server import ScriptedServer, completion, send

CATEGORIES = {"q0": "hard", "q1": "hard", "q2": "poems"}
ARENA = ["arena_hard", "--assets", "arena", "--answers", "m.jsonl", "--judge-model", "j", "-o", "out"]
BOTH = ["--baseline", "x.jsonl", "--baseline", "z.jsonl"]
RATES = ["current tool, hard", "current tool, poems"]


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def stdout(result: Result) -> str:
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


@pytest.fixture(autouse=True)
def _current_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark, the model's answers, and a baseline for each category; the working folder is theirs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    questions = [
        {"uid": name, "category": category, "cluster": "c", "prompt": f"do {name}"}
        for name, category in CATEGORIES.items()
    ]
    write_rows(Path("arena/question.jsonl"), questions)
    Path("arena/judge_config.yaml").write_text(
        "judge_model: j\ntemperature: 0.0\nmax_tokens: 9\nregex_patterns: [x]\n"
        "prompt_template: 'P {QUESTION} A {ANSWER_A} B {ANSWER_B}'\n",
        encoding="utf-8",
    )
    arena_answers(Path("m.jsonl"), CATEGORIES)
    arena_answers(Path("x.jsonl"), ["q0", "q1"])
    arena_answers(Path("z.jsonl"), ["q2"])


def tool_row(name: str, baseline: str) -> dict[str, Any]:
    """A judgment of the current tool, won by the model."""
    sides = (f"{name} by {baseline}", f"{name} by m")
    games = [
        {
            "score": label,
            "judgment": {"answer": f"[[{label}]]"},
            "prompt": [
                {"role": "system", "content": f"judge {CATEGORIES[name]}"},
                {"role": "user", "content": f"P do {name} A {first} B {second}"},
            ],
        }
        for label, (first, second) in (("B>A", sides), ("A>B", sides[::-1]))
    ]
    return {
        "uid": name,
        "category": CATEGORIES[name],
        "judge": "j",
        "model": "m",
        "baseline": baseline,
        "games": games,
    }


def test_games_of_the_tool_are_taken_and_the_rest_is_asked_likewise() -> None:
    target = write_rows(Path("out/model_judgment/j/m.jsonl"), [tool_row("q0", "x"), tool_row("q2", "z")])
    assert stdout(run(*ARENA, *BOTH, "--dry-run")).startswith("2 calls")
    with ScriptedServer(lambda body: send(completion("[[A=B]]"))) as server:
        told = stdout(run(*ARENA, *BOTH, "--judge-url", server.url))
        assert len(server.asked) == 2
        system, user = server.asked[0]["messages"]
        assert system == {"role": "system", "content": "judge hard"}
        assert user["content"].startswith("P do q1 A q1 by ")
        # what is written now is known again, with the replies gone
        Path("out/judge_replies.jsonl").unlink()
        stdout(run(*ARENA, *BOTH, "--judge-url", server.url))
        assert len(server.asked) == 2
    assert "the baselines differ: hard: x; poems: z" in told
    rows = {row["uid"]: row for row in map(json.loads, target.read_text("utf-8").splitlines())}
    assert {name: row["baseline"] for name, row in rows.items()} == {"q0": "x", "q1": "x", "q2": "z"}
    assert [message["content"] for message in rows["q1"]["games"][1]["prompt"]] == [
        "judge hard",
        "P do q1 A q1 by m B q1 by x",
    ]
    found = json.loads(Path("out/results.json").read_text("utf-8"))
    values = {score["name"]: score["value"] for score in found["scores"]}
    assert [name for name in values if name.startswith("current tool")] == RATES
    assert values["current tool, poems"] == 100.0
    assert found["missing"]["other_prompt_or_answer"] == []


def test_a_file_that_is_named_says_it_too() -> None:
    file = write_rows(Path("tool.jsonl"), [tool_row("q0", "x"), tool_row("q1", "x"), tool_row("q2", "z")])
    told = stdout(run(*ARENA, *BOTH, "--judgments", file, "--rescore"))
    assert "system messages of the judge as judgments have them ('tool.jsonl')" in told
    found = json.loads(Path("out/results.json").read_text("utf-8"))
    assert found["missing"]["other_prompt_or_answer"] == []
    assert found["missing"]["rate"] == 0


def test_nobody_is_asked_with_half_a_prompt() -> None:
    result = run(*ARENA, *BOTH, "--dry-run")
    assert isinstance(result.exception, DataError)
    assert "'system_prompt: {hard: TEXT, poems: TEXT}'" in str(result.exception)


def test_a_question_without_a_baseline_is_named() -> None:
    write_rows(Path("out/model_judgment/j/m.jsonl"), [tool_row("q0", "x"), tool_row("q2", "z")])
    arena_answers(Path("x.jsonl"), ["q0"])
    result = run(*ARENA, *BOTH, "--dry-run")
    assert isinstance(result.exception, DataError)
    assert "no baseline answers the question 'q1' of hard" in str(result.exception)


def test_one_category_is_scored_before_the_other_is_judged() -> None:
    file = write_rows(Path("tool.jsonl"), [tool_row("q0", "x"), tool_row("q1", "x")])
    told = stdout(run(*ARENA, *BOTH, "--judgments", file, "--rescore"))
    assert "the judge's system message is not known: poems" in told
    found = json.loads(Path("out/results.json").read_text("utf-8"))
    assert [score["value"] for score in found["scores"] if score["name"] in RATES] == [100.0, None]
