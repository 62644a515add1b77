"""A report as JSON and back, and what is refused as none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holdfast.capability.demonstrations import RowSettings
from holdfast.capability.measure import assemble
from holdfast.capability.pilot_report import PilotReport, Scores, compare
from holdfast.capability.report import CapabilityReport, Probed
from holdfast.errors import DataError
from tests.capability.conftest import by_hand


def report(rows: int = 12) -> CapabilityReport:
    probabilities = [[1.0, 0.2 + 0.05 * n, 0.9] for n in range(rows)]
    targets = [[1, 10 + n, 2] for n in range(rows)]
    probed = Probed("model", "rows.jsonl", rows, rows, rows, 0, "digest", 0, 1024, "float32", 0)
    return assemble(
        by_hand(probabilities, targets),
        [f"rows.jsonl:{n + 1}" for n in range(rows)],
        ["rows.jsonl"] * rows,
        probed,
        RowSettings().run("model", "rows.jsonl"),
    )


def piloted() -> CapabilityReport:
    scores = {
        name: Scores(-np.ones(4), np.ones(4), np.array([1, 0, 1, 0.0]), np.full(4, share), np.ones(4))
        for name, share in (("start", 0.1), ("nll", 0.5), ("p", 0.25))
    }
    objectives = {"nll": {"name": "nll"}, "p": {"name": "p"}}
    arms, winners = compare(scores, objectives, {"nll": 0.3, "p": float("nan")}, seed=0)
    return replace(report(), pilot=PilotReport(10, 40, 4, 4, 64, 2, 0, {"adapter": None}, arms, winners))


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    own = report()
    assert CapabilityReport.from_dict(json.loads(json.dumps(own.to_dict(), allow_nan=False))) == own
    assert CapabilityReport.load(own.save(tmp_path / "new" / "probe.json")) == own


def test_a_pilot_comes_with_it_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    own = piloted()
    back = CapabilityReport.load(own.save(tmp_path / "probe.json"))
    assert back.pilot is not None
    assert back.pilot.arm("p").final_loss is None
    assert back.pilot.arm("nll") == own.pilot.arm("nll")  # type: ignore[union-attr]
    assert back.pilot.winners == own.pilot.winners  # type: ignore[union-attr]


def test_the_frame_of_the_answers_is_left_out_of_the_regime() -> None:
    """Ones around 0.2 to 0.75: the frame is given away, and what stands between is judged alone."""
    own = report()
    assert own.informative is not None
    assert own.informative.tokens == 24  # the closing token follows a token that no other row has
    assert own.guess.value is not None
    p, q = own.informative.mean_probability.value, own.guess.value
    assert p == pytest.approx((np.mean([0.2 + 0.05 * n for n in range(12)]) + 0.9) / 2)
    assert own.capability.value == pytest.approx((p - q) / (1 - q))


def test_what_the_model_rules_out_of_the_frame_is_the_formats() -> None:
    """The first token is given away in every row; every third row rules it out. What is open does not count."""
    probabilities = [[0.001 if n % 3 == 0 else 1.0, 0.001] for n in range(12)]
    found = assemble(
        by_hand(probabilities, [[1, 10 + n] for n in range(12)]),
        [str(n) for n in range(12)],
        ["rows"] * 12,
        Probed("model", "rows.jsonl", 12, 12, 12, 0, "digest", 0, 1024, "float32", 0),
        RowSettings().run("model", "rows.jsonl"),
    )
    assert found.format_ruled_out.value == pytest.approx(4 / 12)
    assert found.format_ruled_out.low is not None
    assert found.format_ruled_out.low < 4 / 12
    assert report().format_ruled_out.value == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1}, "'format' is 1, not 2"),
        ({"every": None}, "'every'"),
        ({"regime": {"name": "great"}}, "'regime.name'"),
        ({"capability": {"value": "high"}}, "'capability.value'"),
    ],
)
def test_another_version_or_a_damaged_file_is_named(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "probe.json"
    file.write_text(json.dumps(report().to_dict() | change), encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        CapabilityReport.load(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_what_is_no_report_is_an_error(text: str, tmp_path: Path) -> None:
    file = tmp_path / "probe.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="probe.json"):
        CapabilityReport.load(file)
