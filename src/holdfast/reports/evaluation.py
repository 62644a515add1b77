"""An evaluation's folder as one page that needs nothing else: scores, categories, questions, answers, judgments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from holdfast.errors import DataError
from holdfast.reports import evaluation_words as words
from holdfast.reports.html import flatten
from holdfast.reports.page import render, write_page
from holdfast.reports.run_files import read_record
from holdfast.reports.visible import visible

KEPT = "\n\t"  # what sets out a text
FIXED = ("id", "category", "score", "flags")  # keys of a question that have a place of their own
LISTED = 40  # ids named of each kind of oddity
FLIPS_WITH_TEXTS = 60  # of a comparison; below them the table alone


class Bar(NamedTuple):
    """A category's score, in percent of the widest."""

    name: str
    value: str
    bounds: str
    width: float
    low: float | None
    high: float | None


class QuestionRow(NamedTuple):
    """A question: cells of the table, and the texts behind them."""

    id: str
    category: str
    score: str
    others: list[str]
    flags: list[str]
    blocks: list[tuple[str, str]]
    anchor: str


def write_evaluation(folder: str | Path) -> Path:
    """Write `report.html` beside an evaluation's `results.json` and return its path.

    Reads `details.jsonl` too where it is there. Texts are escaped; characters that a page would obey are shown.

    Raises:
        DataError: a file is missing, or is of another layout.
    """
    where = Path(folder)
    found = _results(where / "results.json")
    details = _details(where / "details.jsonl")
    columns = list(
        dict.fromkeys(key for question in found["questions"] for key in question if key not in FIXED)
    )
    page = render(
        "evaluation.html.j2",
        title=f"{found['name']}: {found['model']}",
        headline=words.headline(found),
        official=found["official"],
        why=found["why_not_official"],
        notes=[str(note) for note in found.get("notes", ())],
        scores=[
            (score["name"], words.number(score["value"]), words.bounds(score), score["n"], score["note"])
            for score in found["scores"]
        ],
        bars=bars(found["per_category"]),
        missing=[*words.cut_lines(found), *words.missing_lines(found["missing"], LISTED)],
        columns=columns,
        questions=[
            _question(question, columns, details, f"q-{place}")
            for place, question in enumerate(found["questions"])
        ],
        provenance=list(
            flatten(
                {
                    key: found[key]
                    for key in ("protocol", "judge", "settings", "hashes", "created")
                    if found[key]
                }
            )
        ),
    )
    return _written(where / "report.html", page)


def write_flips(
    path: str | Path, comparison: Mapping[str, Any], first: str | Path, second: str | Path
) -> Path:
    """Write two evaluations compared (`Comparison.as_record()`) as a page, with both runs' texts of what flipped.

    Args:
        first, second: the evaluations' folders, or their `results.json`.

    Raises:
        DataError: a folder's texts cannot be read, or the page cannot be written.
    """
    before, after = (_details(_folder(place) / "details.jsonl") for place in (first, second))
    rows = []
    for place, flip in enumerate(comparison["flips"]):
        name = str(flip["id"])
        texts = place < FLIPS_WITH_TEXTS
        rows.append(
            (
                visible(name),
                visible(flip["category"]),
                words.number(flip["first"]),
                words.number(flip["second"]),
                words.signed(flip["second"] - flip["first"]),
                before.get(name, []) if texts else [],
                after.get(name, []) if texts else [],
                f"f-{place}",
            )
        )
    lines = words.comparison(comparison)
    page = render(
        "evaluation_flips.html.j2",
        title=f"{comparison['second']} against {comparison['first']}",
        verdict=lines[0],
        lines=lines[1:],
        names=(comparison["first"], comparison["second"]),
        rows=rows,
    )
    return _written(Path(path), page)


def bars(categories: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """The categories' scores on one scale from 0."""
    tops = [
        max(category["value"], category["interval"]["high"] if category["interval"] else 0)
        for category in categories
        if category["value"] is not None
    ]
    top = max(tops, default=0) or 1

    def place(value: float) -> float:
        return round(max(0.0, 100 * value / top), 2)

    found = []
    for category in categories:
        value, interval = category["value"], category["interval"]
        found.append(
            Bar(
                category["name"],
                words.number(value),
                words.bounds(category) or category["note"],
                0.0 if value is None else place(value),
                place(interval["low"]) if interval else None,
                place(interval["high"]) if interval else None,
            )
        )
    return found


def _question(
    question: Mapping[str, Any],
    columns: Sequence[str],
    details: Mapping[str, list[tuple[str, str]]],
    anchor: str,
) -> QuestionRow:
    return QuestionRow(
        id=visible(str(question["id"])),
        category=visible(str(question.get("category", ""))),
        score=words.number(question.get("score"), 2),
        others=[_cell(question.get(column)) for column in columns],
        flags=[visible(str(flag)) for flag in question.get("flags", ())],
        blocks=details.get(str(question["id"]), []),
        anchor=anchor,
    )


def _cell(value: Any) -> str:
    if value is None:
        return words.NONE
    return visible(value if isinstance(value, str) else json.dumps(value))


def _results(path: Path) -> dict[str, Any]:
    found = read_record(path)
    for key, kind in (("scores", list), ("per_category", list), ("questions", list), ("missing", dict)):
        if not isinstance(found.get(key), kind):
            raise DataError(
                f"{path}: '{key}' must be a {kind.__name__}; this is not the results of an evaluation"
            )
    if not found["scores"]:
        raise DataError(f"{path}: has no score")
    for key in (
        "name",
        "model",
        "official",
        "why_not_official",
        "protocol",
        "judge",
        "settings",
        "hashes",
        "created",
    ):
        if key not in found:
            raise DataError(f"{path}: has no '{key}'; this is not the results of an evaluation")
    return found


def _details(path: Path) -> dict[str, list[tuple[str, str]]]:
    """(title, text) of each question's blocks, made harmless; empty where the file is not there."""
    if not path.exists():
        return {}
    found: dict[str, list[tuple[str, str]]] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            found[str(row["id"])] = [
                (visible(str(block["title"])), visible(str(block["text"]), KEPT)) for block in row["blocks"]
            ]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not a question's texts ({error!r})") from error
    return found


def _folder(place: str | Path) -> Path:
    return Path(place) if Path(place).is_dir() else Path(place).parent


def _written(path: Path, page: str) -> Path:
    try:
        return write_page(path, page)
    except OSError as error:
        raise DataError(f"cannot write the page '{path}': {error.strerror}") from error
