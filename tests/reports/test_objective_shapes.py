"""The figure of objectives: what is marked, what is cut, what is refused."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from holdfast.errors import ConfigError
from holdfast.reports.objective_shapes import COLOURS, Curve, write_objective_shapes


def curve(label: str, value: float = 1.0, peak: float = 0.5, weight: float = 0.25) -> Curve:
    return Curve(label, [0.1, 0.5, 0.9], [value, value / 2, 0.0], [0.1, weight, 0.1], peak, weight)


def test_every_curve_is_named_and_its_peak_marked(tmp_path: Path) -> None:
    path = write_objective_shapes(
        tmp_path / "deep" / "a.svg", [curve("one"), curve("two $x_1$", 2.0, 0.125, 0.5)]
    )
    figure = path.read_text(encoding="utf-8")
    assert path == tmp_path / "deep" / "a.svg"
    for text in ("one", "two $x_1$", "0.25 at p = 0.5", "0.5 at p = 0.125"):
        assert f">{text}<" in figure
    assert all(colour.lower() in figure.lower() for colour in COLOURS[:2])
    assert "dc:date" not in figure


def test_what_is_unbounded_does_not_flatten_the_rest(tmp_path: Path) -> None:
    figure = write_objective_shapes(
        tmp_path / "a.svg", [curve("tall", 1e6), curve("broken", math.inf)]
    ).read_text()
    ticks = [float(found.replace("−", "-")) for found in re.findall(r">(−?\d+(?:\.\d+)?)</text>", figure)]
    assert max(ticks) <= 5


def test_more_curves_than_colours_differ_in_dashes(tmp_path: Path) -> None:
    curves = [curve(f"c{n}", 1 + n / 10) for n in range(len(COLOURS) + 1)]
    figure = write_objective_shapes(tmp_path / "a.svg", curves).read_text()
    assert "stroke-dasharray" in figure
    assert "stroke-dasharray" not in write_objective_shapes(tmp_path / "b.svg", curves[:-1]).read_text()


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.svg or \.png"):
        write_objective_shapes(tmp_path / "a.jpg", [curve("one")])
    assert not list(tmp_path.iterdir())
