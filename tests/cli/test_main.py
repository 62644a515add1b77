"""The command line: what it prints and how it exits."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from holdfast import __version__, list_objectives
from holdfast.cli.main import app, main


@pytest.mark.parametrize("name", list_objectives())
def test_explain_every_objective(name: str) -> None:
    result = CliRunner().invoke(app, ["explain", name])
    assert result.exit_code == 0
    assert name in result.stdout
    assert "paper:" in result.stdout


def test_explain_lists_all() -> None:
    result = CliRunner().invoke(app, ["explain"])
    assert all(name in result.stdout for name in list_objectives())


def test_version() -> None:
    assert __version__ in CliRunner().invoke(app, ["--version"]).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "slim"], "did you mean 'slime'?"),
        (["run", "missing.yaml"], "no config file 'missing.yaml'"),
        (["run", "."], "config file '.' cannot be read: Is a directory"),
        (["align", "some/model", "rows.jsonl", "learning_rat=1"], "did you mean 'learning_rate'?"),
        (["sft", "some/model", "rows.jsonl", "--config", "missing.yaml"], "no config file 'missing.yaml'"),
        (["sft", "some/model", "rows.jsonl"], "some/model"),
        (["report", "nowhere"], "nowhere"),
    ],
)
def test_mendable_errors_are_one_message_and_exit_code_2(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["holdfast", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_full_disk_is_one_message_whatever_was_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "metrics.jsonl"))

    monkeypatch.setattr("holdfast.cli.run.write_run_report", full)
    monkeypatch.setattr(sys, "argv", ["holdfast", "report", "runs/a"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "metrics.jsonl' cannot be written: No space left on device" in said
    assert "Traceback" not in said
