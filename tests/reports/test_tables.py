"""Rows of the report's tables."""

from __future__ import annotations

from holdfast.reports.tables import metric_table


def test_a_single_measurement_has_no_change() -> None:
    (row,) = (row for row in metric_table("sft", [{"step": 3, "loss": 2.0}]) if row.label == "loss")
    assert (row.first, row.first_step, row.last, row.change) == ("2", 3, "2", "")
