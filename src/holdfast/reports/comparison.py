"""Several arms of one experiment on one page: what each ended at, how sure that is, and how it got there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from holdfast.reports.curves import DASHES, SERIES, Panel, Series, gap_note
from holdfast.reports.metrics import NOT_MEASURED, describe
from holdfast.reports.page import render, write_page
from holdfast.reports.run_files import Row, points

Estimate = tuple[float, float, float]  # value, and the bounds of its confidence interval


@dataclass(frozen=True)
class Arm:
    """One way of training: its name, the rows it logged, and its final measurements by column key."""

    name: str
    metrics: Sequence[Row] = ()
    summary: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """A final measurement: `percent` shows a share as a percentage."""

    key: str
    label: str
    unit: str
    percent: bool = False


COLUMNS = (
    Column("exact", "Exact match", "% of prompts, higher is better", percent=True),
    Column("valid_format", "Valid format", "% of prompts, higher is better", percent=True),
    Column("chosen_drift", "Chosen drift", "nats/token against the start; below 0 is unlearning"),
    Column(
        "rejected_floor",
        "Rejected-token floor",
        "% of rejected tokens with p < 1e-4, lower is better",
        percent=True,
    ),
)
CURVES = ("mean_logps/chosen", "mean_logps/rejected", "rejected/collapsed")


class Cell(NamedTuple):
    """One estimate, ready to print: texts, and its places on the column's scale from 0 to 100."""

    value: str
    bounds: str
    place: float
    low: float
    high: float


def write_comparison(
    path: str | Path,
    title: str,
    arms: Sequence[Arm],
    notes: Sequence[str] = (),
    *,
    columns: Sequence[Column] = COLUMNS,
    curves: Sequence[str] = CURVES,
) -> Path:
    """Write one page that sets arms side by side, and return its path.

    Args:
        arms: rows of the table, in order; an arm that logged nothing (the start, say) has no curves.
        notes: sentences on how to read the page: budget, seeds, how intervals were made.
        columns: the final measurements; a key that an arm's `summary` lacks is "not measured".
        curves: keys of the metrics to draw, all arms on the same axes.
    """
    drawn = [arm for arm in arms if arm.metrics]
    page = render(
        "comparison.html.j2",
        title=title,
        notes=notes,
        columns=columns,
        table=_table(arms, columns),
        legend=[(arm.name, slot % len(SERIES) + 1, _svg_dashes(slot)) for slot, arm in enumerate(drawn)],
        panels=[_panel(key, drawn) for key in curves],
    )
    return write_page(Path(path), page)


def _table(arms: Sequence[Arm], columns: Sequence[Column]) -> list[tuple[str, list[Cell | None]]]:
    """Each arm's name and cells; None is a cell that was not measured."""
    cells = [_column_cells(arms, column) for column in columns]
    return [(arm.name, [column[row] for column in cells]) for row, arm in enumerate(arms)]


def _column_cells(arms: Sequence[Arm], column: Column) -> list[Cell | None]:
    measured = [arm.summary[column.key] for arm in arms if column.key in arm.summary]
    left = min((low for _, low, _ in measured), default=0.0)
    width = max((high for _, _, high in measured), default=0.0) - left

    def place(value: float) -> float:
        return round(100 * (value - left) / width, 2) if width else 50.0

    def text(value: float) -> str:
        number = f"{100 * value:.1f}" if column.percent else f"{value:.3f}"
        return number.replace("-", "−")

    found: list[Cell | None] = []
    for arm in arms:
        if column.key not in arm.summary:
            found.append(None)
            continue
        value, low, high = arm.summary[column.key]
        found.append(Cell(text(value), f"{text(low)} to {text(high)}", place(value), place(low), place(high)))
    return found


def _panel(key: str, arms: Sequence[Arm]) -> Panel:
    """One metric of all arms; slots follow the arms, so that an arm looks the same in every panel."""
    series = [
        Series(arm.name, points(arm.metrics, key), colour=slot, dash=slot) for slot, arm in enumerate(arms)
    ]
    measured = [one for one in series if one.points[0]]
    absent = [one.label for one in series if not one.points[0]]
    notes = [gap_note(measured)] + ([f"{NOT_MEASURED}: {', '.join(absent)}"] if absent else [])
    metric = describe(key)
    return Panel(metric.title, metric.unit, measured, "; ".join(note for note in notes if note))


def _svg_dashes(slot: int) -> str:
    """An arm's dash pattern as SVG's `stroke-dasharray`, as long as the legend's line is wide."""
    return " ".join(str(2 * length) for length in DASHES[slot % len(DASHES)]) or "none"
