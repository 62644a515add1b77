"""What an evaluation leaves in its folder: `results.json`, the numbers, and `details.jsonl`, the texts behind them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from holdfast.errors import DataError
from holdfast.evaluation.statistics import Estimate, Interval
from holdfast.files import replacing

RESULTS, DETAILS = "results.json", "details.jsonl"


@dataclass(frozen=True)
class Score:
    """One number; `value` is None where there is none to give, and `note` says why.

    Attributes:
        n, clusters: values it is the mean of, and the questions they come from.
        note: how it was made, where the name does not say it.
    """

    name: str
    value: float | None
    interval: Interval | None = None
    n: int = 0
    clusters: int = 0
    note: str = ""

    @classmethod
    def of(cls, name: str, estimate: Estimate, note: str = "") -> Score:
        """An estimate under a name."""
        return cls(name, estimate.value, estimate.interval, estimate.n, estimate.clusters, note)


@dataclass(frozen=True)
class Results:
    """One evaluation of one model.

    Attributes:
        name: the benchmark's, where `official`; else one that says so, such as `MT-Bench questions, custom`.
        why_not_official: every way in which it departs from the benchmark's protocol.
        judge: what is known of it (asked for, served as, its settings); None where there is none.
        settings: of generation, and whatever else changes the numbers.
        hashes: of questions, references, prompts, answers.
        scores: the headline first.
        per_category: `Score` of each category, by its name.
        missing: counts and lists of what is not there, is there twice, or could not be read.
        questions: a mapping each, with `id`, `category` and `score` (None: missing), and what else there is; the
            questions of two runs are paired by `id`.
        notes: sentences for the reader.
    """

    name: str
    official: bool
    why_not_official: Sequence[str]
    model: str
    judge: Mapping[str, Any] | None
    protocol: str
    settings: Mapping[str, Any]
    hashes: Mapping[str, str]
    scores: Sequence[Score]
    per_category: Sequence[Score]
    missing: Mapping[str, Any]
    questions: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = field(default_factory=list)
    created: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))

    def write(self, folder: str | Path, details: Sequence[Mapping[str, Any]] = ()) -> Path:
        """Write `results.json`, and the texts where there are any, into a folder; return the former's path.

        Args:
            details: rows `{"id": ..., "blocks": [{"title": ..., "text": ...}, ...]}`, a question each.
        """
        target = Path(folder) / RESULTS
        text = json.dumps(asdict(self), indent=1, allow_nan=False)
        write_rows(target.with_name(DETAILS), details)
        with replacing(target) as beside:
            beside.write_text(text + "\n", encoding="utf-8")
        return target


def read_results(path: str | Path) -> Results:
    """What `Results.write` wrote; the path of the file or of its folder.

    Raises:
        DataError: the file cannot be read, or is of another layout.
    """
    file = Path(path) / RESULTS if Path(path).is_dir() else Path(path)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        found["scores"] = [_score(score) for score in found["scores"]]
        found["per_category"] = [_score(score) for score in found["per_category"]]
        return Results(**found)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); name an evaluation's folder") from error
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not the results of an evaluation ({error!r})") from error


def _score(found: Mapping[str, Any]) -> Score:
    interval = found["interval"]
    return Score(**{**found, "interval": None if interval is None else Interval(**interval)})


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a JSON Lines file whole, in place of one that is there."""
    with replacing(path) as beside, beside.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, allow_nan=False) + "\n")
    return path
