"""`holdfast eval figfont`, `maths` and `lm_eval`: rows, a tiny model asked, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from holdfast.cli.main import app
from holdfast.data.sources import read_rows
from holdfast.errors import ConfigError, DataError
from holdfast.evaluation.results import read_results
from holdfast.evaluation.tasks import harness
from holdfast.evaluation.tasks.figfont import figlet_fonts
from holdfast.models.tiny import tiny_bpe_tokenizer, tiny_model
from tests.faults.scripted_server import ScriptedServer, hang, send


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model."""
    folder = tmp_path_factory.mktemp("models") / "tiny" / "final"
    tokenizer = tiny_bpe_tokenizer(["Answer with the word alone."], 300)
    weights = tiny_model(
        "qwen3",
        len(tokenizer),
        hidden_size=32,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    weights.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def stdout(result: Result) -> str:
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


def test_rows_to_train_on(tmp_path: Path):
    path = tmp_path / "figfont.jsonl"
    told = stdout(run("figfont", "--make-rows", 5, "--output", path, "--seed", 3))
    assert told.startswith("5 rows in ")
    rows = [row for _, row in read_rows(path)]
    assert len(rows) == 5
    assert {row["font"] for row in rows} <= set(figlet_fonts().names)


def test_figfont_asks_a_model(model: Path, tmp_path: Path):
    told = stdout(run("figfont", "--model", model, "--rows", 3, "-o", tmp_path / "out"))
    results = read_results(tmp_path / "out")
    assert [score.name for score in results.scores] == ["exact match", "Jaro-Winkler"]
    assert results.scores[0].value == 0.0
    assert "exact match" in told
    assert (tmp_path / "out" / "report.html").exists()


def test_maths_asks_a_model(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        row = json.dumps({"problem": f"{name}?", "answer": 2})
        (tmp_path / f"{name}.jsonl").write_text(row + "\n", encoding="utf-8")
    told = stdout(
        run("maths", "--model", model, "--tasks", "one.jsonl,two.jsonl", "--samples", 2, "--max-tokens", 4)
    )
    assert told.count("avg@2") == 2
    for name in ("one", "two"):
        results = read_results(tmp_path / "runs" / "eval-maths-tiny" / name)
        assert results.missing["not_compared"] == {"no boxed answer": 2}


@pytest.mark.parametrize("task", ["figfont", "maths"])
def test_how_long_and_how_often_a_server_is_asked(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("one.jsonl").write_text(json.dumps({"problem": "one?", "answer": 2}) + "\n", encoding="utf-8")
    few = ["--rows", 1] if task == "figfont" else ["--tasks", "one.jsonl", "--samples", 1]

    def reasons(server: ScriptedServer, folder: str, *options: Any) -> str:
        """What the one call failed of."""
        asked = [task, "--model", "m", "--backend", "server", "--model-url", server.url, *few, "-o", folder]
        assert run(*asked, *options).exit_code != 0
        return "".join(file.read_text("utf-8") for file in Path(folder).rglob("failures.jsonl"))

    with ScriptedServer(lambda body: hang) as server:
        assert "within 0.2 seconds" in reasons(server, "a", "--attempts", 1, "--total-timeout", 0.2)
        assert "silent for too long" in reasons(server, "b", "--attempts", 1, "--read-timeout", 0.2)
    with ScriptedServer(lambda body: send(b"", 500)) as server:
        assert "tried 2 times" in reasons(server, "c", "--attempts", 2)
    for option, said in (
        ("--connect-timeout", "connect must be above 0 seconds"),
        ("--attempts", "attempts must be 1 to 100"),
    ):
        result = run(task, "--model", "m", *few, option, 0)
        assert isinstance(result.exception, ConfigError)
        assert said in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["figfont"], "which model"),
        (["figfont", "--make-rows", "3"], "--output FILE"),
        (["figfont", "--model", "m", "--output", "rows.jsonl"], "--output-dir"),
        (["maths"], "which model"),
        (["maths", "--model", "m", "--tasks", "gsm9k"], "did you mean 'gsm8k'"),
        (["maths", "--model", "m", "--tasks", " ,"], "names none"),
        (["maths", "--model", "m", "--backend", "server"], "--model-url"),
        (["figfont", "--model", "m", "--model-url", "http://x/v1"], "--backend server"),
        (["lm_eval"], "which model"),
        (["maths", "--model", "m", "--prompt", "qwen"], "no maths prompt"),
        (["lm_eval", "--model", "m"], "no task named"),
    ],
)
def test_what_is_refused(arguments: list[str], words: str):
    result = run(*arguments)
    assert isinstance(result.exception, ConfigError)
    assert words in str(result.exception)


def test_a_file_is_not_overwritten(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text("mine", encoding="utf-8")
    result = run("figfont", "--make-rows", 1, "--output", tmp_path / "rows.jsonl")
    assert isinstance(result.exception, DataError)
    assert (tmp_path / "rows.jsonl").read_text(encoding="utf-8") == "mine"


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    result = run("lm_eval", "--model", "m", "--tasks", "arc_easy")
    assert isinstance(result.exception, ConfigError)
    assert "holdfast[lm-eval]" in str(result.exception)
