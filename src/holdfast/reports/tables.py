"""The tables of a run report, as rows of texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from holdfast.reports.metrics import NOT_MEASURED, describe, format_number, table_keys
from holdfast.reports.run_files import Row, points, section


class MetricRow(NamedTuple):
    """One metric of a stage's log, from its first row to its last; texts, ready to print."""

    label: str
    unit: str
    first: str
    first_step: int | None
    last: str
    last_step: int | None
    change: str


class ChangeRow(NamedTuple):
    """One quantity on held-out rows, before the stage and after it; texts, ready to print."""

    name: str
    unit: str
    before: str
    after: str
    change: str
    bounds: str
    pairs: str


def metric_table(stage: str, rows: Sequence[Row]) -> list[MetricRow]:
    """First and last value of each metric of a stage, the expected but unmeasured ones among them."""
    table = []
    for key in table_keys(stage, rows):
        metric = describe(key)
        steps, values = points(rows, key)
        if not values:
            table.append(MetricRow(metric.label, metric.unit, NOT_MEASURED, None, NOT_MEASURED, None, ""))
            continue
        change = values[-1] - values[0]
        told = len(values) > 1 and math.isfinite(change)
        table.append(
            MetricRow(
                metric.label,
                metric.unit,
                format_number(values[0]),
                steps[0],
                format_number(values[-1]),
                steps[-1],
                _number(change, signed=True) if told else "",
            )
        )
    return table


def change_table(recorded: Mapping[str, Any], place: str) -> list[ChangeRow]:
    """What a stage measured on held-out rows before and after; empty where it measured nothing so."""
    changes = section(recorded.get("held_out"), f"{place}: 'held_out'").get("changes") or []
    table = []
    for change in changes:
        measured = section(change, f"{place}: a change")
        low, high = measured.get("low"), measured.get("high")
        table.append(
            ChangeRow(
                str(measured.get("name")),
                str(measured.get("unit", "")),
                _number(measured.get("before")),
                _number(measured.get("after")),
                _number(measured.get("change"), signed=True),
                NOT_MEASURED if low is None or high is None else f"{_number(low)} to {_number(high)}",
                _number(measured.get("pairs")),
            )
        )
    return table


def _number(value: Any, signed: bool = False) -> str:
    if not isinstance(value, int | float):
        return NOT_MEASURED
    return ("+" if signed and value > 0 else "") + format_number(value)
