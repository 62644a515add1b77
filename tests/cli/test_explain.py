"""`holdfast explain --plot`: the paper's figure, any set of token objectives, and mistakes by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from holdfast.cli.explain import PAPERS_FIGURE
from holdfast.cli.main import app, main
from holdfast.errors import ConfigError


def plotted(tmp_path: Path, *names: str, suffix: str = ".svg") -> tuple[str, bytes]:
    figure = tmp_path / f"shapes{suffix}"
    result = CliRunner().invoke(app, ["explain", "--plot", *names, "-o", str(figure)])
    assert result.exit_code == 0, result.output
    return result.stdout, figure.read_bytes()


def test_the_papers_figure_by_one_command(tmp_path: Path) -> None:
    told, figure = plotted(tmp_path)
    lines = {line.split()[0]: line.split()[1:] for line in told.splitlines() if line.strip()}
    assert lines["nll"] == ["prior-averse", "convex", "0", "1"]
    assert lines["p"] == ["prior-leaning", "a", "line", "0.5", "0.25"]
    assert lines["f_alpha:alpha=10"] == ["prior-leaning", "concave", "0.9091", "0.03505"]
    assert lines["log_one_minus_p"] == ["prior-leaning", "concave", "1", "1"]
    for text in (*PAPERS_FIGURE, "0.035 at p = 0.909", "W_f(p)"):
        assert text.encode() in figure


def test_settings_follow_a_name(tmp_path: Path) -> None:
    told, figure = plotted(
        tmp_path,
        "f_alpha:alpha=0.3",
        "threshold:low=0.2",
        "threshold:base.name=f_alpha,base.alpha=2,high=1e-1",
    )
    assert "0.2308" in told  # 0.3 / 1.3
    assert "cut; convex where kept" in told
    assert "cut; concave where kept" in told
    assert b"0.8 at p = 0.2" in figure


def test_a_png(tmp_path: Path) -> None:
    assert plotted(tmp_path, "nll", suffix=".png")[1].startswith(b"\x89PNG")


def test_the_same_command_gives_the_same_bytes(tmp_path: Path) -> None:
    assert plotted(tmp_path, "nll", "focal") == plotted(tmp_path, "nll", "focal")


def test_several_names_are_told_in_turn() -> None:
    told = CliRunner().invoke(app, ["explain", "nll", "dpo"]).stdout
    assert told.index("NLL:") < told.index("dpo  ")
    assert "shape: prior-averse (f is convex); W_f has its peak, 1, at p = 0" in told


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["slime"], "'slime' works on pairs and is no function of one probability; --plot draws the token"),
        (["nl"], "unknown objective 'nl' (did you mean 'nll'?)"),
        (["f_alpha:alph=1"], "f_alpha: unknown hyperparameter 'alph' (did you mean 'alpha'?)"),
        (["f_alpha:alpha"], "'f_alpha:alpha': 'alpha' is not a setting; write f_alpha:alpha=0.3"),
        (["f_alpha:alpha=[1"], "'alpha=[1': the value is not valid YAML"),
        (["f_alpha:alpha=-1"], "f_alpha: alpha must be >= 0, got -1.0"),
        (["threshold:base=dpo"], "must be a token objective, got 'dpo'"),
        (["nll", "-o", "shapes.pdf"], "'shapes.pdf': a figure's file name ends in .svg or .png"),
        (["nll", "-o", "file/shapes.svg"], "'file/shapes.svg' cannot be written"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(
    names: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["holdfast", "explain", "--plot", *names])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.svg"))


def test_a_bound_that_is_a_quantile_cannot_be_drawn() -> None:
    result = CliRunner().invoke(app, ["explain", "--plot", "threshold:low_quantile=0.1", "-o", "shapes.svg"])
    assert isinstance(result.exception, ConfigError)
    assert "quantiles of a model's probabilities" in str(result.exception)
