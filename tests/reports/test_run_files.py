"""Run files are read strictly: every fault is a DataError that names the file, and the line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from holdfast.errors import DataError
from holdfast.reports.run_files import points, read_metrics, read_record, stages


def test_rows_stages_and_points(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"stage": "sft", "step": 1, "loss": 2.5}\n'
        "\n"
        '{"stage": "sft", "step": 2, "loss": null, "eval_loss": 3}\n'
        '{"stage": "align", "step": 1, "loss": NaN, "note": "a\u2028b", "done": true}\n',
        encoding="utf-8",
    )
    rows = read_metrics(path)
    assert [row["step"] for row in rows] == [1, 2, 1]
    by_stage = stages(rows)
    assert {name: len(found) for name, found in by_stage.items()} == {"sft": 2, "align": 1}
    steps, values = points(by_stage["sft"], "loss")
    assert (steps, values[0]) == ([1, 2], 2.5)
    assert math.isnan(values[1])  # null: measured, and not finite
    assert points(by_stage["sft"], "eval_loss") == ([2], [3.0])
    steps, values = points(by_stage["align"], "loss")
    assert steps == [1]
    assert math.isnan(values[0])
    assert points(by_stage["align"], "note") == points(by_stage["align"], "done") == ([], [])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"run\.json: cannot be read \(No such file"):
        read_record(tmp_path / "run.json")
    with pytest.raises(DataError, match=r"metrics\.jsonl: cannot be read"):
        read_metrics(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"step": 2, "lo', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON in UTF-8"),
        (b"[1, 2]", "holds a JSON list, not an object"),
        (b'{"loss": 1.0}', "'step' must be a whole number, not None"),
        (b'{"step": 1.5}', "'step' must be a whole number, not 1.5"),
        (b'{"step": true}', "'step' must be a whole number, not True"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: " + reason):
        read_metrics(path)


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_a_bad_record_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"run\.json: "):
        read_record(path)
