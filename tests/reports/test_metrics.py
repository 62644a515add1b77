"""What metrics are called, how they are ordered, and how numbers read."""

from __future__ import annotations

import math

import pytest

from holdfast.reports.metrics import describe, format_number, measured_keys


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.02456789, "−0.02457"),
        (1234.56, "1,235"),
        (5e-7, "5e-07"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (math.nan, "NaN"),
    ],
)
def test_number_format(value: float, text: str) -> None:
    assert format_number(value) == text


def test_keys_are_described_and_ordered() -> None:
    assert describe("eval_mean_logps/chosen").label == "chosen log-prob, held out"
    assert describe("loss/anchor").label == "loss: anchor"
    assert describe("my/own").label == "my/own"
    row = {
        "step": 1,
        "epoch": 0.5,
        "zeta": 1,
        "beta": 2,
        "grad_norm": 1,
        "eval_loss": 1,
        "loss": 2,
        "note": "x",
    }
    assert measured_keys([row]) == ["loss", "eval_loss", "grad_norm", "beta", "zeta"]
