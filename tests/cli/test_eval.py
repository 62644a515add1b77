"""`holdfast eval` on files: what it prints and writes, offline, and against a scripted server."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from holdfast.cli.main import app
from holdfast.demo.run import start_folder
from holdfast.errors import ConfigError, DataError, HoldfastError, Interrupted
from tests.evaluation.small_benchmarks import (
    CATEGORIES,
    arena_answers,
    arena_assets,
    talk_answer,
    talk_answers,
    talk_assets,
    write_rows,
)
from tests.faults.scripted_server import Act, ScriptedServer, completion, hang, question_of, send


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no line is broken, whatever this machine's is."""
    monkeypatch.setenv("COLUMNS", "200")


def stdout(result: Result) -> str:
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


def failure(*arguments: Any) -> HoldfastError:
    result = run(*arguments)
    assert isinstance(result.exception, HoldfastError), result.output
    return result.exception


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Arguments that name the benchmark and the answers."""
    monkeypatch.chdir(tmp_path)
    talk_assets(tmp_path / "mt")
    return ["mt_bench", "--assets", "mt", "--answers", talk_answers(tmp_path / "m.jsonl")]


def judgments(path: Path, model: str = "m", score: int = 7) -> Path:
    return write_rows(
        path,
        (
            {
                "question_id": number,
                "model": model,
                "judge": ["gpt-4", "single-v1"],
                "user_prompt": "?",
                "judgment": f"[[{score + (number == 1)}]]",
                "score": score + (number == 1),
                "turn": turn,
                "tstamp": 1.0,
            }
            for number in CATEGORIES
            for turn in (1, 2)
        ),
    )


def test_rescoring_a_file_of_the_original_tool_asks_nobody(talk: list[Any], tmp_path: Path) -> None:
    shown = stdout(run(*talk, "--judgments", judgments(tmp_path / "gpt-4_single.jsonl"), "--rescore"))
    assert shown.startswith("m, MT-Bench questions, custom: 7.250, ")
    assert "0.0 % missing or unread" in shown
    assert "custom, because of:" in shown
    assert "8 judgments of another prompt or another answer" in shown
    assert "saved: runs/eval-mt_bench-m/results.json" in shown
    assert "Answers and judgments" in Path("runs/eval-mt_bench-m/report.html").read_text("utf-8")


def test_json_is_the_results_and_nothing_else(talk: list[Any], tmp_path: Path) -> None:
    result = run(*talk, "--judgments", judgments(tmp_path / "j.jsonl"), "--rescore", "--json", "-o", "out")
    assert json.loads(stdout(result)) == json.loads(Path("out/results.json").read_text("utf-8"))
    assert "saved: out/results.json" in result.stderr


def test_a_dry_run_counts_calls_tokens_and_cost(talk: list[Any], tmp_path: Path) -> None:
    shown = stdout(run(*talk, "--dry-run", "--judgings", 2, "--price-in", 10, "--price-out", 30))
    assert shown.startswith("16 calls, ")
    assert "at most 32,768 to write" in shown  # 16 of 2048
    assert "by the prices given" in shown
    assert not Path("runs").exists()
    unwritten = stdout(run("mt_bench", "--assets", "mt", "-m", "some/model", "--dry-run"))
    assert "8 answers are to be written first" in unwritten
    assert "8 calls" in unwritten
    assert "no prices given" in unwritten


def test_a_dry_run_counts_answers_that_a_run_would_make_anew(talk: list[Any], tmp_path: Path) -> None:
    """Those of others are not this model's."""
    answers = (talk_answer(number, "model") for number in (1, 2))
    write_rows(tmp_path / "out" / "model_answer" / "model.jsonl", answers)
    shown = stdout(run("mt_bench", "--assets", "mt", "-m", "some/model", "-o", "out", "--dry-run"))
    assert "8 answers are to be written first" in shown
    assert "8 calls" in shown


def test_a_dry_run_leaves_out_what_a_run_would_not_ask(talk: list[Any]) -> None:
    """Judgments of a file, of the folder's own file, and replies."""
    with ScriptedServer(lambda body: send(completion("[[6]]"))) as server:
        stdout(run(*talk, "--judge-url", server.url, "--judge-model", "j", "-o", "out"))
    file = Path("out/model_judgment/j_single.jsonl")
    dry = [*talk, "--judge-model", "j", "--dry-run"]
    assert stdout(run(*dry, "--judgments", file, "-o", "new")).startswith("0 calls")
    part = Path("part.jsonl")
    part.write_text("".join(file.read_text("utf-8").splitlines(keepends=True)[:5]), encoding="utf-8")
    assert stdout(run(*dry, "--judgments", part, "-o", "new")).startswith("3 calls")
    assert not Path("new").exists()
    Path("out/judge_replies.jsonl").unlink()
    part.replace(file)
    before = file.read_bytes()
    assert stdout(run(*dry, "-o", "out")).startswith("3 calls")
    assert stdout(run(*dry, "-o", "out", "--judgings", 2)).startswith("11 calls")
    other = ["--judge-extra", '{"max_tokens": 9}']  # our rows say under which settings
    assert stdout(run(*dry, "-o", "out", *other)).startswith("8 calls")
    assert (file.read_bytes(), Path("out/judge_replies.jsonl").exists()) == (before, False)


def test_a_dry_run_of_games_leaves_them_out_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arena_assets(tmp_path / "arena")
    mine, other = arena_answers(tmp_path / "m.jsonl"), arena_answers(tmp_path / "before.jsonl")
    games = ["arena_hard", "--assets", "arena", "--answers", mine, "--judge-model", "j", "--baseline", other]
    with ScriptedServer(lambda body: send(completion("[[A=B]]"))) as server:
        stdout(run(*games, "--judge-url", server.url, "-o", "out"))
    file = Path("out/model_judgment/j/m.jsonl")
    part = Path("part.jsonl")
    part.write_text("".join(file.read_text("utf-8").splitlines(keepends=True)[:4]), encoding="utf-8")
    assert "\n4 calls" in stdout(run(*games, "--dry-run", "--judgments", part, "-o", "new"))
    Path("out/judge_replies.jsonl").unlink()
    part.replace(file)
    assert "\n4 calls" in stdout(run(*games, "--dry-run", "-o", "out"))
    counted = run(*games, "--dry-run", "-o", "out", "--json")
    assert json.loads(stdout(counted))["calls"] == 4  # and nothing else in it


def test_a_server_judges_and_a_second_run_pays_nothing(talk: list[Any]) -> None:
    with ScriptedServer(lambda body: send(completion("Rating: [[6]]"))) as server:
        asked = [*talk, "--judge-url", server.url, "--judge-model", "j", "-o", "out"]
        assert stdout(run(*asked)).startswith("m, MT-Bench questions, custom: 6.000")
        once = len(server.asked)
        assert stdout(run(*asked)).startswith("m, MT-Bench questions, custom: 6.000")
        assert (once, len(server.asked)) == (8, 8)
    assert stdout(run(*talk, "--dry-run", "--judge-model", "j", "-o", "out")).startswith("0 calls")
    assert "6.000" in stdout(run(*talk, "--rescore", "--judge-model", "j", "-o", "out"))


def test_arena_hard_and_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arena_assets(tmp_path / "arena")
    mine, other = arena_answers(tmp_path / "m.jsonl"), arena_answers(tmp_path / "before.jsonl")
    common = ["--assets", "arena", "--answers", mine, "--judge-model", "j"]
    dry = stdout(run("arena_hard", *common, "--baseline", other, "--dry-run"))
    assert "12 calls" in dry
    assert "asked once more" in dry
    with ScriptedServer(lambda body: send(completion("[[A=B]]"))) as server:
        shown = stdout(run("arena_hard", *common, "--baseline", other, "--judge-url", server.url))
        assert shown.startswith("m, Arena-Hard questions, custom: 50.000")
        assert "against before, not gpt-4-0314" in shown
        pair = stdout(run("pairwise", *common, "--against", other, "--judge-url", server.url, "--limit", 3))
        assert pair.startswith("m, win rate against before: 50.000")
        assert len(server.asked) == 12 + 6


def test_two_runs_compared(talk: list[Any], tmp_path: Path) -> None:
    for name, score in (("a", 6), ("b", 7)):
        file = judgments(tmp_path / f"{name}.jsonl", score=score)
        stdout(run(*talk, "--judgments", file, "--rescore", "-o", name))
    shown = stdout(run("compare", "a", "b"))
    assert "b against a, MT-Bench questions, custom: +1.000, 4 questions paired" in shown
    assert "4 better, 0 worse, 0 the same" in shown
    assert "4 questions are too few for an interval" in shown
    assert "What flipped" in Path("b/comparison.html").read_text("utf-8")
    assert json.loads(stdout(run("compare", "a", "b", "--json")))["better"] == 4
    assert isinstance(failure("compare", "a", "nowhere"), DataError)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name the judge's server with --judge-url"),
        (["--model", "x", "--rescore"], "give one of the two"),
        (["--rescore", "--judge-url", "http://localhost:1/v1"], "--rescore asks nobody"),
        (["--dry-run", "--price-in", 1], "both prices"),
        (["--rescore"], "give --answers or --judgments|have no reply|is there"),
    ],
)
def test_options_that_do_not_go_together(talk: list[Any], arguments: list[Any], said: str) -> None:
    error = failure(*talk, *arguments)
    assert isinstance(error, ConfigError | DataError)

    assert re.search(said, str(error))


def test_workers_and_stops_change_nothing(talk: list[Any]) -> None:
    """One worker or many, in one go or stopped by a server that fails half way: the same judgments and scores."""
    answered = threading.Semaphore(3)

    def rates(body: Mapping[str, Any]) -> Act:
        return send(completion(f"[[{len(question_of(body)) % 10 + 1}]]"))

    def fails_later(body: Mapping[str, Any]) -> Act:
        return rates(body) if answered.acquire(blocking=False) else send(b"{}", 400)

    found = {}
    for name, workers, scripts in (
        ("one", 1, [rates]),
        ("many", 32, [rates]),
        ("stopped", 4, [fails_later, rates]),
    ):
        for script in scripts:
            with ScriptedServer(script) as server:
                common = [
                    "--judge-url",
                    server.url,
                    "--judge-model",
                    "j",
                    "--concurrency",
                    workers,
                    "-o",
                    name,
                ]
                found[name] = json.loads(stdout(run(*talk, *common, "--json")))
                asked = len(server.asked)
    assert asked == 5  # three were there
    files = []
    for name in found:
        lines = Path(name, "model_judgment", "j_single.jsonl").read_text("utf-8").splitlines()
        files.append([{**json.loads(line), "tstamp": 0} for line in lines])
    assert files[0] == files[1] == files[2]
    assert found["one"]["scores"] == found["many"]["scores"] == found["stopped"]["scores"]


def test_a_judge_that_takes_other_keys(talk: list[Any]) -> None:
    with ScriptedServer(lambda body: send(completion("[[4]]"))) as server:
        extra = ["--judge-extra", '{"max_tokens": null, "max_completion_tokens": 9}']
        shown = stdout(run(*talk, "--judge-url", server.url, *extra))
        assert "max_tokens" not in server.asked[0]
        assert server.asked[0]["max_completion_tokens"] == 9
        assert "judge settings other than temperature 0 and 2048 tokens" in shown
        without = str(failure(*talk, "--rescore"))
        assert "8 replies to the same questions under other judge settings" in without
        assert "failures.jsonl" not in without
        assert "4.000" in stdout(run(*talk, "--rescore", *extra))
        stdout(run(*talk, "--judge-url", server.url))  # other settings are another question
        assert len(server.asked) == 16
    for text in ("[1]", "{"):
        assert "--judge-extra" in str(failure(*talk, "--dry-run", "--judge-extra", text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '{"max_completion_tokens": "abc"}',
            "'max_completion_tokens' must be a whole number from 1, not 'abc'",
        ),
        ('{"top_k": NaN}', "'top_k' cannot be sent as JSON"),
        ('{"messages": []}', "'messages' is set by the client"),
    ],
)
def test_keys_that_no_judge_takes_are_one_message(talk: list[Any], text: str, said: str) -> None:
    error = failure(*talk, "--dry-run", "--judge-extra", text)
    assert isinstance(error, ConfigError)
    assert str(error).startswith(f"--judge-extra: {said}")


def test_how_long_and_how_often_a_server_is_asked(talk: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer(lambda body: send(b"", 500)) as server:
        to = [*talk, "--judge-url", server.url, "--judge-model", "j"]
        error = failure(*to, "--attempts", 2, "--concurrency", 1, "--limit", 1)
        assert "tried 2 times" in str(error)
        for option in ("--connect-timeout", "--read-timeout", "--total-timeout"):
            assert "must be above 0 seconds" in str(failure(*to, option, 0))
        assert "attempts must be 1 to 100" in str(failure(*to, "--attempts", 0))
    monkeypatch.setattr("holdfast.cli.eval_progress.TOLD", 0.01)
    with ScriptedServer(lambda body: hang) as server:
        to = [*talk, "--judge-url", server.url, "--judge-model", "j", "--limit", 1, "--attempts", 1]
        result = run(*to, "--total-timeout", 0.2)
        assert "no whole answer within 0.2 seconds" in str(result.exception)
        assert "judgments: 0 of 2, 0 failed\n" in result.stderr
        assert "silent for too long" in str(failure(*to, "--read-timeout", 0.2))
        answering = ["-m", "x", "--backend", "server", "--model-url", server.url, "-o", "out"]
        failure("mt_bench", "--assets", "mt", *answering, *to[5:], "--total-timeout", 0.2)
        assert "within 0.2 seconds" in Path("out/generation/x/failures.jsonl").read_text("utf-8")
    for option, default in (
        ("--connect-timeout", "10.0"),
        ("--read-timeout", "300.0"),
        ("--total-timeout", "600.0"),
        ("--attempts", "6"),
    ):
        assert re.search(rf"{option} .*\[default: {default}\]", stdout(run("mt_bench", "--help")))


def test_files_are_written_before_anything_is_said(
    talk: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a reader that leaves loses nothing."""
    there: list[bool] = []
    for module in ("eval_judged", "eval_results"):
        monkeypatch.setattr(f"holdfast.cli.{module}.say", lambda _: there.append(Path(expected).exists()))
    for expected in ("a/report.html", "a/comparison.html"):
        file = judgments(tmp_path / "gpt-4_single.jsonl")
        if expected == "a/report.html":
            stdout(run(*talk, "--judgments", file, "--rescore", "-o", "a"))
        else:
            stdout(run("compare", "a", "a"))
    assert there == [True, True]


def test_replies_cut_before_they_began_are_said(talk: list[Any]) -> None:
    cut = completion("").replace(b'"stop"', b'"length"')
    with ScriptedServer(
        lambda body: send(cut if "first 1?" in question_of(body) else completion("[[5]]"))
    ) as server:
        to = [*talk, "--judge-url", server.url, "--judge-model", "j", "-o", "out", "--missing-limit", 1]
        for _ in range(2):
            shown = stdout(run(*to))
            assert (
                "judgments cut at the judge's max_tokens: 2, 2 of them without any text; they are not"
                in shown
            )
        assert len(server.asked) == 8
    assert "2 of them without any text" in Path("out/report.html").read_text("utf-8")


def test_pairs_need_a_judge(tmp_path: Path) -> None:
    arena_assets(tmp_path / "arena")
    mine = arena_answers(tmp_path / "m.jsonl")
    error = failure(
        "pairwise", "--assets", tmp_path / "arena", "--answers", mine, "--against", mine, "--dry-run"
    )
    assert "--judge-model" in str(error)


def test_the_group_lists_its_commands() -> None:
    shown = stdout(run("--help"))
    assert all(
        name in shown for name in ("mt_bench", "arena_hard", "pairwise", "compare", "figfont", "maths")
    )


def test_a_model_answers_is_judged_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way, with the demonstration's tiny model: its answers are short, and its own."""
    monkeypatch.chdir(tmp_path)
    talk_assets(tmp_path / "mt")
    monkeypatch.setattr("holdfast.cli.eval_progress.TOLD", 0.001)
    with start_folder() as start, ScriptedServer(lambda body: send(completion("[[4]]"))) as server:
        asked = ["mt_bench", "--assets", "mt", "-m", start, "--model-id", "tiny", "--max-tokens", 6]
        asked += ["--judge-url", server.url, "--judge-model", "j", "-o", "out"]
        first_run = run(*asked)
        shown = stdout(first_run)
        assert re.search("answers: [0-9]+ of 4, 0 failed\n", first_run.stderr)
        assert shown.startswith("tiny, MT-Bench questions, custom: 4.000")
        assert "answers of at most 6 tokens, not 1024" in shown
        written = Path("out/model_answer/tiny.jsonl").read_text("utf-8")
        (first, *_) = [json.loads(line) for line in written.splitlines()]
        assert list(first) == ["question_id", "answer_id", "model_id", "choices", "tstamp", "made_with"]
        assert [len(choice["turns"]) for choice in first["choices"]] == [2]
        stdout(run(*asked))
        assert len(server.asked) == 8
        dry = [*asked[:-6], "--judge-model", "j", "-o", "out", "--dry-run"]
        assert stdout(run(*dry)).startswith("0 calls")
        assert "8 answers are to be written first" in stdout(run(*dry, "--thinking", "strip"))
        file, part = Path("out/model_answer/tiny.jsonl"), written.splitlines(keepends=True)[:3]
        file.write_text("".join(part), encoding="utf-8")
        left = stdout(run(*dry))
        assert "2 answers are to be written first" in left
        assert "\n2 calls" in left
        file.write_text(written, encoding="utf-8")
    result = json.loads(Path("out/results.json").read_text("utf-8"))
    assert result["judge"]["served"] == {"judge-0613": 8}
    assert result["settings"]["answer_tokens"] == 6
    offline = run(
        "mt_bench", "--assets", "mt", "--model-id", "tiny", "--rescore", "--judge-model", "j", "-o", "out"
    )
    assert "answers of at most 6 tokens, not 1024" in stdout(offline)  # it is known how they were made
    again = json.loads(Path("out/results.json").read_text("utf-8"))
    assert (again["settings"], again["scores"]) == (result["settings"], result["scores"])


def test_a_folder_that_cannot_be_written_is_named(talk: list[Any], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    file = judgments(tmp_path / "gpt-4_single.jsonl")
    error = failure(*talk, "--judgments", file, "--rescore", "-o", tmp_path / "taken" / "out")
    assert isinstance(error, DataError)
    assert "cannot be read or written" in str(error)


def test_ctrl_c_says_how_to_go_on(talk: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("holdfast.evaluation.judged.mt_bench_run.run_mt_bench", stopped)
    error = failure(*talk, "--rescore", "-o", "out")
    assert isinstance(error, Interrupted)
    assert "the same command goes on from there" in str(error)
