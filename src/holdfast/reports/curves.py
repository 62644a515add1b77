"""Curves as inline SVG: colours are CSS variables of the page, so a figure follows its light or dark theme.

The same panel always gives the same bytes: no dates, no random ids, no user's matplotlib settings.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from holdfast.reports.metrics import HELD_OUT, describe, measured_keys
from holdfast.reports.run_files import Points, Row, points

# Drawn with stand-in colours, then replaced by the page's variables of these names.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = [f"#0401{slot:02d}" for slot in range(1, 7)]
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid"} | {
    colour: f"--series-{slot}" for slot, colour in enumerate(SERIES, start=1)
}
# Dash and gap in turn, in line widths: curves are told apart without colour too.
DASHES: list[tuple[float, ...]] = [
    (),
    (5, 1.5),
    (1.5, 1.2),
    (6, 1.5, 1.5, 1.5),
    (3, 1, 1, 1, 1, 1),
    (9, 2),
]
STYLE = {
    "svg.fonttype": "none",  # text stays text: selectable, and in the page's own font
    "font.size": 9,
    "text.parse_math": False,  # a label is a metric's or an arm's name, never a formula
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
}
TICK_STEPS = [1, 2, 2.5, 5, 10]
LABEL_GAP = 0.085  # least distance of two labels at the curves' ends, as a share of the panel's height


@dataclass(frozen=True)
class Series:
    """One curve: steps and values (NaN and infinities leave a gap), and which colour and dashes it wears."""

    label: str
    points: Points
    colour: int = 0
    dash: int = 0


@dataclass(frozen=True)
class Panel:
    """Curves on one pair of axes, `unit` against training steps, and what the figure cannot show."""

    title: str
    unit: str
    series: Sequence[Series]
    note: str = ""

    def svg(self) -> Markup:
        """The figure, safe to put into a page as it is."""
        return Markup(_inline(_draw(self), f"{self.title} by training step"))


# Metrics that belong on the same axes, by the panel's title; `Loss terms` takes every `loss/...` there is.
# Any other metric has a panel of its own.
GROUPS = {
    "Loss": ("loss",),
    "Loss terms": (),
    "Mean log-probability": ("mean_logps/chosen", "mean_logps/rejected", "mean_logps/target"),
    "Summed log-probability": ("logps/chosen", "logps/rejected"),
    "Implicit reward": ("rewards/chosen", "rewards/rejected", "rewards/margins"),
    "Share of pairs": ("rewards/accuracies", "margin/satisfied"),
}
UNDRAWN = {"num_tokens"}  # a straight line says nothing


def stage_panels(rows: Sequence[Row]) -> list[Panel]:
    """Every metric of one stage that was measured more than once, held-out values beside the trained ones."""
    keys = measured_keys(rows)
    bases = list(dict.fromkeys(key.removeprefix(HELD_OUT) for key in keys))
    groups: dict[str, tuple[str, ...]] = dict(GROUPS)
    for base in bases:
        if base.startswith("loss/"):
            groups["Loss terms"] = (*groups["Loss terms"], base)
        elif base not in UNDRAWN and not any(base in group for group in GROUPS.values()):
            groups[describe(base).title] = (base,)
    panels = []
    for title, group in groups.items():
        series = [
            Series(_curve_label(key, group), points(rows, key), colour=colour, dash=int(key != base))
            for colour, base in enumerate(group)
            for key in (base, HELD_OUT + base)
            if key in keys
        ]
        if any(len(one.points[0]) > 1 for one in series):
            panels.append(Panel(title, describe(group[0]).unit, series, gap_note(series)))
    return panels


def gap_note(series: Sequence[Series]) -> str:
    """How many values of which curves are NaN or infinite, so that a gap is never overlooked."""
    gaps = {one.label: sum(not math.isfinite(value) for value in one.points[1]) for one in series}
    return "; ".join(f"{label}: {count} not finite" for label, count in gaps.items() if count)


def _curve_label(key: str, group: Sequence[str]) -> str:
    if len(group) == 1:
        return "held out" if key.startswith(HELD_OUT) else "training"
    name = key.removeprefix(HELD_OUT).rpartition("/")[2]
    return f"{name}, held out" if key.startswith(HELD_OUT) else name


def _draw(panel: Panel) -> str:
    """The panel as a complete SVG document."""
    with style.context(["default", STYLE | {"svg.hashsalt": repr(panel)}]):
        figure = Figure(figsize=(5.2, 2.9), layout="constrained", facecolor="none")
        axes = figure.add_subplot(facecolor="none")
        for one in panel.series:
            steps, values = one.points
            dashes = DASHES[one.dash % len(DASHES)]
            drawable = [value if math.isfinite(value) else math.nan for value in values]
            axes.plot(
                steps,
                drawable,
                color=SERIES[one.colour % len(SERIES)],
                linestyle=(0, dashes) if dashes else "-",
                marker="o" if len(steps) < 12 else None,
                markersize=3,
            )
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=TICK_STEPS))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=TICK_STEPS))
        axes.set_xlabel("step")
        axes.set_ylabel(panel.unit)
        axes.grid(visible=False, axis="x")
        if len(panel.series) > 1:
            _label_ends(axes, panel.series)
        document = io.StringIO()
        figure.savefig(document, format="svg", transparent=True)
    return document.getvalue()


def _label_ends(axes: Axes, series: Sequence[Series]) -> None:
    """Write each curve's name beside its last finite point, apart enough to be read."""
    low, high = axes.get_ylim()
    ends = []
    for one in series:
        finite = [value for value in one.points[1] if math.isfinite(value)]
        if finite:
            ends.append(((finite[-1] - low) / (high - low), one))
    ends.sort(key=lambda end: end[0])
    for height, (_, one) in zip(spread([height for height, _ in ends]), ends, strict=True):
        axes.text(
            1.02,
            height,
            one.label,
            transform=axes.transAxes,
            color=SERIES[one.colour % len(SERIES)],
            verticalalignment="center",
        )


def spread(heights: Sequence[float], gap: float = LABEL_GAP) -> list[float]:
    """Rising heights in [0, 1], moved so that neighbours are `gap` apart, as little past 1 as can be."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    ceiling = max(1.0, gap * (len(placed) - 1))
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed


def _inline(document: str, label: str) -> str:
    """A matplotlib SVG document as an element of a page, which sets its colours, font and width."""
    svg = document[document.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None, "matplotlib writes a viewBox"
    content = svg[svg.index(">") + 1 :]
    # The metadata holds a date; the style would reach every element of the page.
    for unwanted in (r"<metadata>.*?</metadata>", r"<style .*?</style>"):
        content = re.sub(unwanted, "", content, count=1, flags=re.DOTALL)
    # Group names repeat from figure to figure, and an id may stand only once on a page.
    content = re.sub(r'<g id="[^"]*"', "<g", content)
    content = re.sub(r"font-family: [^;]*; ", "", content)
    content = re.sub(
        rf"(fill|stroke): ({'|'.join(VARIABLES)})",
        lambda found: f"{found[1]}: var({VARIABLES[found[2]]})",
        content,
    )
    return f'<svg {box[0]} role="img" aria-label="{escape(label)}">{content}'
