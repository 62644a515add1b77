"""Which curves share a panel, where their labels stand, and that a figure is the same each time."""

from __future__ import annotations

import itertools
import math
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.reports.curves import Panel, Series, gap_note, spread, stage_panels


def rows(**metrics: list[Any]) -> list[dict[str, Any]]:
    length = max(map(len, metrics.values()))
    return [
        {"step": 10 * (i + 1), **{k.replace("__", "/"): v[i] for k, v in metrics.items() if i < len(v)}}
        for i in range(length)
    ]


def test_panels_group_what_belongs_together() -> None:
    panels = stage_panels(
        rows(
            loss=[3.0, 2.0],
            eval_loss=[3.5, 2.5],
            loss__anchor=[0.3, 0.2],
            loss__margin=[2.7, 1.8],
            mean_logps__chosen=[-2.0, -1.0],
            mean_logps__rejected=[-2.0, -3.0],
            num_tokens=[100, 200],
            eval_runtime=[1.0, 1.1],
            train_loss=[2.0, 2.0],
            eval_probability__target=[0.5],
            my_own=[1, 2],
        )
    )
    assert {panel.title: [one.label for one in panel.series] for panel in panels} == {
        "Loss": ["training", "held out"],
        "Loss terms": ["anchor", "margin"],
        "Mean log-probability": ["chosen", "rejected"],
        "My_own": ["training"],
    }
    assert [panel.title for panel in panels][:2] == ["Loss", "Loss terms"]
    loss, _, logps, _ = panels
    assert loss.series[0].points == ([10, 20], [3.0, 2.0])
    assert [(one.colour, one.dash) for one in loss.series] == [(0, 0), (0, 1)]  # one colour, held out dashed
    assert [one.colour for one in logps.series] == [0, 1]
    assert logps.unit == "nats/token"


def test_one_point_is_no_curve_but_is_drawn_beside_one() -> None:
    assert stage_panels(rows(loss=[1.0], eval_loss=[2.0])) == []
    (panel,) = stage_panels(rows(loss=[1.0, 0.5], eval_loss=[2.0]))
    assert [one.points for one in panel.series] == [([10, 20], [1.0, 0.5]), ([10], [2.0])]


def test_gaps_are_counted() -> None:
    series = [Series("a", ([1, 2, 3], [1.0, math.nan, math.inf])), Series("b", ([1], [0.0]))]
    assert gap_note(series) == "a: 2 not finite"


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([], []),
        ([0.5], [0.5]),
        ([0.1, 0.9], [0.1, 0.9]),
        ([0.5, 0.5], [0.5, 0.6]),
        ([0.95, 0.97, 1.0], [0.8, 0.9, 1.0]),  # no room above: the lower ones give way
    ],
)
def test_labels_by_hand(heights: list[float], expected: list[float]) -> None:
    assert spread(heights, gap=0.1) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1), max_size=12))
def test_labels_never_touch(heights: list[float]) -> None:
    placed = spread(sorted(heights), gap=0.1)
    assert all(above - below >= 0.1 - 1e-9 for below, above in itertools.pairwise(placed))
    assert all(height <= max(1.0, 0.1 * (len(placed) - 1)) + 1e-9 for height in placed)


def test_figure_is_deterministic_themed_and_free_of_outside_links() -> None:
    panel = Panel("Mean log-probability", "nats/token", [Series("chosen", ([1, 2], [-1.0, -0.5]))])
    svg = panel.svg()
    assert svg == panel.svg()
    assert "nats/token" in svg
    assert "var(--series-1)" in svg
    assert "#0401" not in svg  # no stand-in colour is left
    assert "http" not in svg
    assert "<style" not in svg  # it would restyle the whole page
    assert 'aria-label="Mean log-probability by training step"' in svg


def test_hostile_and_odd_values_are_drawn() -> None:
    """Names with mathtext, markup and backslashes are plain text; gaps and constants are drawn."""
    name = r'$\frac{1}{$ </text><script>alert("1")</script> \1 fill: #123456'
    series = [
        Series(name, ([1, 2, 3], [1.0, math.nan, math.inf])),
        Series("flat", ([1, 2, 3], [5.0, 5.0, 5.0]), colour=1, dash=1),
        Series("nothing", ([1, 2], [math.nan, math.nan]), colour=8, dash=9),
    ]
    svg = Panel(name, name, series).svg()
    assert "<script" not in svg
    drawn = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert [text.text for text in drawn.iter("text")].count(name) == 2  # the axis and the curve's end
    assert drawn.attrib["aria-label"] == f"{name} by training step"
