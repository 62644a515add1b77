"""Medians, ratios within a round, and who agrees with whom."""

from __future__ import annotations

import math
from typing import Any

import pytest

from step_report import Form, cells, disagreements, table_row


def form(group: str | None = "loss", label: str = "a form", **others: Any) -> Form:
    return Form(label, group, "plain", lambda *args: None, **others)


def run(name: str, turn: int = 0, seconds: float = 1.0, **changes: Any) -> dict[str, Any]:
    return {
        "form": name,
        "round": turn,
        "seconds": seconds,
        "tokens": 100,
        "peak_bytes": 10,
        "grown_bytes": 5,
        "useful_operations": 60.0,
        "matmul_rates": {"before": [50.0, 120.0], "after": [60.0]},
        "losses": [2.0, 1.0],
        "gradient_norms": [4.0, 3.0],
        **changes,
    }


def test_ratios_are_to_the_same_round() -> None:
    # A machine that slows down by half leaves every round's ratio as it is.
    raw = [run("plain", turn, 2.0**turn) for turn in range(3)] + [
        run("fast", turn, 2.0**turn / 4) for turn in range(3)
    ]
    row = table_row("fast", form(), raw)
    assert row["tokens_per_second_ratio"] == {"median": 4.0, "min": 4.0, "max": 4.0}
    assert row["tokens_per_second"] == {"median": 200.0, "min": 100.0, "max": 400.0}
    assert row["peak_bytes_ratio"]["median"] == 1.0
    assert row["share_of_matmul"]["max"] == pytest.approx(60 / 0.25 / 120)
    assert row["loss"] == 2.0


def test_a_form_that_failed_has_a_row_that_says_so() -> None:
    row = table_row("fast", form(), [run("plain"), {"form": "fast", "round": 0, "failed": "no memory"}])
    assert row["failed"] == "no memory"
    assert cells(row)[:2] == ["a form", "failed"]


def test_without_a_baseline_there_is_no_ratio() -> None:
    row = table_row("fast", form(), [{"form": "plain", "round": 0, "failed": "no memory"}, run("fast")])
    assert row["tokens_per_second_ratio"] is None
    assert cells(row)[2] == "–"


def test_forms_of_a_group_that_agree() -> None:
    forms = {"plain": form(), "fast": form()}
    near = run("fast", losses=[2.00001, 1.0], gradient_norms=[4.0, 3.0002])
    assert disagreements(forms, [run("plain"), near], "float32") == []


@pytest.mark.parametrize(
    ("changes", "figure"),
    [
        ({"losses": [2.0, 1.001]}, "loss"),
        ({"gradient_norms": [4.01, 3.0]}, "gradient_norm"),
        ({"losses": [math.nan, 1.0]}, "loss"),
    ],
)
def test_a_form_that_leaves_its_group_is_named(changes: dict[str, Any], figure: str) -> None:
    forms = {"plain": form(), "fast": form(label="the fast one")}
    (line,) = disagreements(forms, [run("plain"), run("fast"), run("fast", 1, **changes)], "float32")
    assert line.startswith(f"the fast one: {figure} is ")


def test_a_loss_that_jumps_has_slack_where_rounding_moves_it() -> None:
    forms = {"plain": form(), "fast": form(slack={"bfloat16": 10.0}), "other": form()}
    raw = [run("plain"), *(run(name, gradient_norms=[4.04, 3.0]) for name in ("fast", "other"))]
    assert len(disagreements(forms, raw, "bfloat16")) == 1
    assert len(disagreements(forms, raw, "float32")) == 2
    far = run("fast", gradient_norms=[4.1, 3.0])
    assert len(disagreements(forms, [run("plain"), far], "bfloat16")) == 1


def test_a_loss_of_its_own_and_another_group_are_not_compared() -> None:
    forms = {"plain": form(), "own": form(None), "other": form("another loss")}
    raw = [run("plain"), run("own", losses=[9.0, 9.0]), run("other", losses=[7.0, 7.0])]
    assert disagreements(forms, raw, "float32") == []
