"""Judgment files, which several models, judges and the original tools share: what is written takes no judgment away."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from holdfast.evaluation.judged.assets import Row, read_table
from holdfast.evaluation.results import write_rows

logger = logging.getLogger(__name__)

# Judgings after the first have a folder of their own: the original Arena-Hard reads every file of its own one.
JUDGMENT_FOLDER, REJUDGMENT_FOLDER, ASIDE_FOLDER = "model_judgment", "model_rejudgment", "set_aside"

ERROR = "$ERROR$"  # what the original tools write where the judge gave no reply

KeyOf = Callable[[str, Row], Hashable]
# What a row's judge said, and to what, part by part (a game, or the row); parts of None are not there.
SaidBy = Callable[[str, Row], Sequence[Any]]


def of_judge(rows: Sequence[Any], judge: str, judge_of: Callable[[Any], str | None]) -> list[Any]:
    """The rows of the judge that is asked for, and those that name none; all, where no row is of it."""
    own = [row for row in rows if judge_of(row) in (None, judge)]
    return own or list(rows)


def write_judgments(folder: Path, name: Path, rows: Sequence[Row], key: KeyOf, said: SaidBy) -> None:
    """Write rows into `folder / name`, in place of those that have their keys; all others stay.

    A judgment that would be lost so, because it is of another answer or prompt, or says something else, is first put
    into `set_aside/NAME`; a line in the log says so. A stop at any moment loses nothing.

    Args:
        key: of a row, with its place; tells models, judges and questions apart.

    Raises:
        DataError: the file holds what is no row.
    """
    target = folder / name
    new = {key(str(target), row): said(str(target), row) for row in rows}
    kept, lost = [], []
    for place, row in read_table(target, "judgment") if target.exists() else []:
        if (at := key(place, row)) not in new:
            kept.append(row)
        elif any(part is not None and part not in new[at] for part in said(place, row)):
            lost.append(row)
    if lost:
        aside = folder / ASIDE_FOLDER / name
        before = [row for _, row in read_table(aside)] if aside.exists() else []
        there = {json.dumps(row, sort_keys=True) for row in before}
        write_rows(aside, [*before, *(row for row in lost if json.dumps(row, sort_keys=True) not in there)])
        logger.warning(
            "'%s': judgments that do not answer what is asked now are replaced, and kept in '%s': %d",
            target,
            aside,
            len(lost),
        )
    write_rows(target, [*kept, *rows])
