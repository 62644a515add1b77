"""`holdfast sweep`: the table on the screen, the files beside it, and mistakes by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from holdfast.cli.main import app
from holdfast.errors import ConfigError

SMALLEST = """
settings: {weak: {kinds: [ciphering]}}
objectives: {start: null}
seeds: [0]
base: {hidden_size: 16, layers: 1, steps: 1, batch_size: 2}
judging: {tasks: 2, samples: 1}
output_dir: OUT
"""


def test_a_sweep_from_the_command_line(tmp_path: Path) -> None:
    file, out = tmp_path / "sweep.yaml", tmp_path / "out"
    file.write_text(SMALLEST.replace("OUT", str(out)), encoding="utf-8")
    first = CliRunner().invoke(app, ["sweep", str(file)])
    assert first.exit_code == 0, first.output
    assert "[1/1] weak, start, seed 0" in first.output
    assert "### weak" in first.output
    assert "| start |" in first.output
    assert sorted(path.name for path in out.iterdir()) == [
        "cells",
        "figure.svg",
        "models",
        "results.jsonl",
        "table.md",
    ]
    second = CliRunner().invoke(app, ["sweep", str(file)])
    assert "1 cells, 1 of them done already" in second.output
    more = CliRunner().invoke(app, ["sweep", str(file), "judging.tasks=3"])
    assert "1 cells, 0 of them done already" in more.output
    assert "starting models" not in more.output


@pytest.mark.parametrize(
    ("override", "message"),
    [("seed=1", r"seed: unknown key \(did you mean 'seeds'\?\)"), ("objectives.x=nl", "did you mean 'nll'")],
)
def test_mistakes_are_named_before_anything_runs(override: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(SMALLEST.replace("OUT", str(tmp_path / "out")), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(app, ["sweep", str(file), override], catch_exceptions=False)
    assert not (tmp_path / "out").exists()
