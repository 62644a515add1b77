"""Judgment files, which several models, judges and the original tools share: what is written takes no judgment away."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from holdfast.errors import DataError
from holdfast.evaluation.judged.assets import Row, read_table
from holdfast.evaluation.results import write_rows

logger = logging.getLogger(__name__)

# Judgings after the first have a folder of their own: the original Arena-Hard reads every file of its own one.
JUDGMENT_FOLDER, REJUDGMENT_FOLDER, ASIDE_FOLDER = "model_judgment", "model_rejudgment", "set_aside"

ERROR = "$ERROR$"  # what the original tools write where the judge gave no reply
ASKED_WITH = "asked_with"  # a key that the original tools pass over

KeyOf = Callable[[str, Row], Hashable]
# What a row's judge said, and to what, part by part (a game, or the row); parts of None are not there.
SaidBy = Callable[[str, Row], Sequence[Any]]
T = TypeVar("T")


@dataclass(frozen=True)
class AskedWith:
    """Under what a judgment was asked, where its file says so: rows of this package do, the original tools' do not.

    Attributes:
        settings: of the judge's decoding.
        served: what the server said that it is.
        system: the judge's system message; None where the row has it elsewhere.
    """

    settings: Mapping[str, Any]
    served: tuple[str, ...] = ()
    system: str | None = None

    def as_row(self) -> Row:
        """For a judgment row."""
        told = {} if self.system is None else {"system": self.system}
        return {"settings": dict(self.settings), "served": list(self.served)} | told


def asked_with(place: str, row: Mapping[str, Any]) -> AskedWith | None:
    """What a row, or a game of it, says of how it was asked; None where it says nothing.

    Raises:
        DataError: it says so in another layout.
    """
    found = row.get(ASKED_WITH)
    if found is None:
        return None
    told = found if isinstance(found, dict) else {}
    settings, served, system = told.get("settings"), told.get("served"), told.get("system")
    if (
        not isinstance(settings, dict)
        or not isinstance(served, list)
        or not all(isinstance(name, str) for name in served)
        or not isinstance(system, str | None)
    ):
        raise DataError(
            f"{place}: '{ASKED_WITH}' must hold 'settings' and 'served'; remove it, and the judgment counts as the "
            "original tool's"
        )
    return AskedWith(settings, tuple(served), system)


def of_judge(
    path: Path, rows: Sequence[T], judge: str, judge_of: Callable[[T], str | None], *, asks: bool
) -> list[T]:
    """A file's rows of the judge that is asked for, and those that name none; all, where no row is of it.

    Raises:
        DataError: no row is, and the judge is to be asked for the rest, if it `asks`.
    """
    own = [row for row in rows if judge_of(row) in (None, judge)]
    if rows and not own and asks:
        others = ", ".join(sorted({str(judge_of(row)) for row in rows}))
        raise DataError(
            f"'{path}': judgments by {others}, not by '{judge}', which would judge the rest: give --judge-model "
            f"{others}, or --rescore what is there"
        )
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
    placed = [(key(str(target), row), row) for row in rows]
    new = dict(placed)
    kept, lost, same = [], [], {}
    for place, row in read_table(target, "judgment") if target.exists() else []:
        if (at := key(place, row)) not in new:
            kept.append(row)
        elif _holds(row, new[at]):
            same[at] = row  # and what else it holds
        else:
            now = said(str(target), new[at])
            if any(part is not None and part not in now for part in said(place, row)):
                lost.append(row)
    put_aside(folder, name, lost, "judgments")
    written = [same[at] if at in same and _holds(same[at], row) else row for at, row in placed]
    write_rows(target, [*kept, *written])


def _holds(whole: Any, part: Any) -> bool:
    """Whether a JSON value has all of another one, and perhaps further keys."""
    if isinstance(whole, dict) and isinstance(part, dict):
        return all(key in whole and _holds(whole[key], part[key]) for key in part)
    if isinstance(whole, list) and isinstance(part, list):
        return len(whole) == len(part) and all(map(_holds, whole, part))
    return bool(whole == part)


def put_aside(folder: Path, name: Path, rows: Sequence[Row], what: str) -> None:
    """Keep rows that others of `folder / name` replace in `set_aside/NAME`, each once, and say so in the log."""
    if not rows:
        return
    aside = folder / ASIDE_FOLDER / name
    before = [row for _, row in read_table(aside)] if aside.exists() else []
    there = {json.dumps(row, sort_keys=True) for row in before}
    write_rows(aside, [*before, *(row for row in rows if json.dumps(row, sort_keys=True) not in there)])
    logger.warning("'%s': %s that others replace are kept in '%s': %d", folder / name, what, aside, len(rows))
