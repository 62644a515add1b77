"""Token objectives as curves: f(p), and the gradient weight W_f(p) with its peak; a figure that stands alone.

The same curves always give the same bytes (one matplotlib version): no dates, no random ids, no user's settings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from holdfast.errors import ConfigError
from holdfast.files import replacing
from holdfast.reports.curves import DASHES, spread

# Paul Tol's "bright" scheme: told apart by most colour-blind readers, in print too.
COLOURS = ["#4477AA", "#EE6677", "#228833", "#AA3377", "#CCBB44", "#66CCEE", "#555555"]
STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.6,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
}
# f is unbounded at an end for the likelihoods: this much of it is drawn.
LOWEST, HIGHEST = -3.0, 5.0
FORMATS = (".svg", ".png")


@dataclass(frozen=True)
class Curve:
    """One objective, measured at rising p; a NaN leaves a gap.

    Attributes:
        p, value, weight: equally long: probability of the target token, f(p) and W_f(p).
        peak, peak_weight: where W_f is greatest, and how great.
    """

    label: str
    p: Sequence[float]
    value: Sequence[float]
    weight: Sequence[float]
    peak: float
    peak_weight: float


def require_format(path: Path) -> None:
    """Refuse a file name that says no format a figure can be written in."""
    if path.suffix not in FORMATS:
        raise ConfigError(f"'{path}': a figure's file name ends in {' or '.join(FORMATS)}")


def write_objective_shapes(path: Path, curves: Sequence[Curve]) -> Path:
    """Draw the curves side by side, f on the left and W_f on the right, into an SVG or PNG file; returns its path.

    Raises:
        ConfigError: the file name ends in neither .svg nor .png.
    """
    require_format(path)
    with style.context(["default", STYLE | {"svg.hashsalt": repr([curve.label for curve in curves])}]):
        figure = Figure(figsize=(9.6, 3.6), layout="constrained")
        values, weights = figure.subplots(1, 2)
        for slot, curve in enumerate(curves):
            dashes = DASHES[slot // len(COLOURS) % len(DASHES)]
            look = {"color": COLOURS[slot % len(COLOURS)], "linestyle": (0, dashes) if dashes else "-"}
            values.plot(curve.p, curve.value, **look)
            weights.plot(curve.p, curve.weight, label=curve.label, **look)
            weights.plot(
                [curve.peak], [curve.peak_weight], "o", color=look["color"], markersize=4, clip_on=False
            )
        _limit(values, curves)
        _name_peaks(weights, curves)
        for axes, title in ((values, "f(p)"), (weights, "W_f(p) = −f′(p) p (1 − p)")):
            axes.set_title(title, loc="left", fontsize=10)
            axes.set_xlabel("p, probability of the target token")
            axes.set_xlim(0, 1)
        figure.legend(loc="outside lower center", ncols=min(len(curves), 4), frameon=False)
        with replacing(path) as beside:
            dated = {"Date": None} if path.suffix == ".svg" else {}
            figure.savefig(beside, format=path.suffix[1:], dpi=150, metadata=dated)
    return path


def _limit(axes: Axes, curves: Sequence[Curve]) -> None:
    """Draw as much of f as is bounded, and a little room."""
    drawn = [
        value
        for curve in curves
        for value in curve.value
        if math.isfinite(value) and LOWEST < value < HIGHEST
    ]
    low, high = min(drawn, default=0.0), max(drawn, default=1.0)
    room = 0.04 * (high - low or 1.0)
    axes.set_ylim(low - room, high + room)


def _name_peaks(axes: Axes, curves: Sequence[Curve]) -> None:
    """Write p and W_f of each peak at the right, in the curve's colour, with enough space between them."""
    _, high = axes.get_ylim()
    order = sorted(range(len(curves)), key=lambda slot: curves[slot].peak_weight)
    heights = spread([curves[slot].peak_weight / high for slot in order], gap=0.07)
    for slot, height in zip(order, heights, strict=True):
        curve = curves[slot]
        axes.annotate(
            f"{curve.peak_weight:.3g} at p = {curve.peak:.3g}",
            xy=(1.02, height),
            xycoords="axes fraction",
            color=COLOURS[slot % len(COLOURS)],
            verticalalignment="center",
            annotation_clip=False,
        )
