"""Percentiles measured once, written and read, and quantile thresholds made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from holdfast.capability.quantiles import (
    Percentiles,
    has_quantiles,
    measure_percentiles,
    thresholds_of_run,
    with_probabilities,
)
from holdfast.errors import ConfigError, DataError
from holdfast.models.tiny import tiny_model
from holdfast.objectives.registry import resolve_objective
from holdfast.objectives.threshold import Threshold
from tests.capability.conftest import tokenized

SQUARES = Percentiles(tuple((n / 100) ** 2 for n in range(101)))


def test_quantiles_lie_between_percentiles() -> None:
    assert [SQUARES.at(q) for q in (0, 0.5, 1)] == [0, 0.25, 1]
    assert SQUARES.at(0.105) == pytest.approx((0.10**2 + 0.11**2) / 2)


@pytest.mark.parametrize("quantile", [-0.1, 1.5, "0.1", True, float("nan")])
def test_a_quantile_lies_between_0_and_1(quantile: Any) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        SQUARES.at(quantile)


def test_a_threshold_is_made_of_its_quantiles() -> None:
    spec = {"name": "threshold", "base": "p", "low_quantile": 0.1, "high_quantile": 0.9}
    assert has_quantiles(spec)
    made = with_probabilities(spec, SQUARES)
    assert made == {"name": "threshold", "base": "p", "low": pytest.approx(0.01), "high": pytest.approx(0.81)}
    assert isinstance(resolve_objective(made), Threshold)
    assert "low_quantile" in spec  # what was given stays as it was


def test_quantiles_in_a_base_are_found() -> None:
    spec = {"name": "threshold", "high": 0.9, "base": {"name": "threshold", "low_quantile": 0.5}}
    assert has_quantiles(spec)
    assert with_probabilities(spec, SQUARES)["base"] == {"name": "threshold", "low": 0.25}
    for other in ("nll", {"name": "threshold", "low": 0.2}, {"name": "f_alpha", "alpha": 1}, None):
        assert not has_quantiles(other)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "threshold", "low": 0.2, "low_quantile": 0.1}, "give this or low, not both"),
        ({"name": "nll", "low_quantile": 0.1}, "belongs to a threshold, not to 'nll'"),
        (
            {"name": "threshold", "high_quantile": 90},
            "objective.high_quantile: a quantile lies between 0 and 1",
        ),
    ],
)
def test_contradictions_name_their_key(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_probabilities(spec, SQUARES)


def test_a_run_measures_once_and_goes_on_with_what_it_recorded() -> None:
    spec, calls = {"name": "threshold", "low_quantile": 0.5}, []

    def measure() -> Percentiles:
        calls.append("measured")
        return SQUARES

    first, percentiles = thresholds_of_run(spec, None, measure)
    assert first == {"name": "threshold", "low": 0.25}
    recorded = json.loads(json.dumps(percentiles.to_list()))
    assert thresholds_of_run(spec, recorded, measure) == (first, SQUARES)
    assert calls == ["measured"]
    with pytest.raises(ConfigError, match="not both"):
        thresholds_of_run(spec | {"low": 0.1}, None, measure)
    with pytest.raises(DataError, match="run.json"):
        thresholds_of_run(spec, [0.5], measure, "run.json")
    assert calls == ["measured"]


def test_they_are_those_of_the_models_target_probabilities() -> None:
    rows = [([1, 2], [3, 4, 5]), ([6], [7]), ([8, 9, 10], [11, 12])]
    model = tiny_model("qwen3", 32, dtype=torch.float64).eval()
    truth = []
    for prompt, completion in rows:
        with torch.no_grad():
            p = model(input_ids=torch.tensor([prompt + completion])).logits[0].softmax(-1)
        truth += [float(p[len(prompt) - 1 + n, token]) for n, token in enumerate(completion)]
    found = measure_percentiles(model, tokenized(rows), 0)
    np.testing.assert_allclose(found.values, np.percentile(truth, range(101)), rtol=0, atol=1e-6)


def test_a_record_comes_back_bit_for_bit() -> None:
    assert Percentiles.from_list(json.loads(json.dumps(SQUARES.to_list()))) == SQUARES


@pytest.mark.parametrize(
    "values", [None, "0.1", [0.1], [0.5] * 100, [*[0.5] * 100, 0.4], [*[0.5] * 100, 1.5], [*[0.5] * 100, "1"]]
)
def test_what_is_no_percentiles_is_an_error(values: Any) -> None:
    with pytest.raises(DataError, match="run.json: 'percentiles'"):
        Percentiles.from_list(values, "run.json: 'percentiles'")


def test_a_probe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="probe.json"):
        Percentiles.of_probe(tmp_path / "probe.json")
