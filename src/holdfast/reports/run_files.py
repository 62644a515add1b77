"""Reading the files of a run folder; every fault is a DataError that names the file and the line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.errors import DataError

Row = Mapping[str, Any]
Points = tuple[list[int], list[float]]  # steps, and the value at each


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object in a run's `run.json`."""
    record = _parse(_read(path), str(path))
    if not isinstance(record, dict):
        raise DataError(f"{path}: holds a JSON {type(record).__name__}, not an object")
    return record


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`: one JSON object a line, each with a whole number `step`."""
    rows = []
    # Split on newlines alone: str.splitlines would also cut at characters that JSON text may hold.
    for number, line in enumerate(_read(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        row = _parse(line, place)
        if not isinstance(row, dict):
            raise DataError(f"{place}: holds a JSON {type(row).__name__}, not an object")
        if type(row.get("step")) is not int:
            raise DataError(f"{place}: 'step' must be a whole number, not {row.get('step')!r}")
        rows.append(row)
    return rows


def stages(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by their `stage`, in order of appearance; rows that name none are the stage `training`."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(str(row.get("stage", "training")), []).append(row)
    return found


def points(rows: Sequence[Row], key: str) -> Points:
    """The steps at which `key` was measured and its values there.

    A null is a measurement that was not finite, for which JSON has no number: it is read as NaN.
    """
    measured = [(row["step"], row[key]) for row in rows if key in row and is_measurement(row[key])]
    return [step for step, _ in measured], [
        math.nan if value is None else float(value) for _, value in measured
    ]


def is_measurement(value: object) -> bool:
    """Whether a logged value is a number or a number that was not finite; texts and booleans are neither."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def section(value: Any, place: str) -> Mapping[str, Any]:
    """A part of a record that must be a mapping; empty where the record has none."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise DataError(f"{place} must be a mapping, not {type(value).__name__}")
    return value


def sentences(value: Any, place: str) -> list[str]:
    """A part of a record that must be a list of sentences; empty where the record has none."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise DataError(f"{place} must be a list of sentences, not {type(value).__name__}")
    return [str(sentence) for sentence in value]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _parse(text: bytes, place: str) -> Any:
    try:
        return json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not valid JSON in UTF-8 ({error})") from error
