"""Answer files: each row says how its answer was made, under a key that the original tools pass over."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.errors import DataError
from holdfast.evaluation.judged.assets import Row, read_table
from holdfast.evaluation.judged.judgment_files import put_aside
from holdfast.evaluation.results import write_rows

ANSWER_FOLDER = "model_answer"
MADE_WITH = "made_with"


def write_answers(
    folder: Path, name: Path, rows: Sequence[Row], id_of: Callable[[str, Row], Hashable]
) -> None:
    """Write a model's answers into `folder / name`, which are of one making.

    What the file has of other questions stays, if it was made in the same way. All else that would be lost is first
    put into `set_aside/NAME`.

    Args:
        id_of: a row's question.

    Raises:
        DataError: the file holds what is no row.
    """
    if not rows:
        return
    target = folder / name
    new = {id_of(str(target), row): _text(row) for row in rows}
    making = _making(rows[0])
    kept, lost = [], []
    for place, row in read_table(target, "answer") if target.exists() else []:
        asked = id_of(place, row)
        if asked not in new and _making(row) == making:
            kept.append(row)
        elif new.get(asked) != _text(row):
            lost.append(row)
    put_aside(folder, name, lost, "answers")
    write_rows(target, [*kept, *rows])


def _making(row: Row) -> Any:
    """How an answer was made, by whatever path its model was named."""
    made = row.get(MADE_WITH)
    return (
        {key: value for key, value in made.items() if key != "generator"} if isinstance(made, dict) else made
    )


def made_so(row: Row, making: Mapping[str, Any]) -> bool:
    """Whether an answer was made in this way."""
    return bool(_making(row) == _making({MADE_WITH: making}))


def _text(row: Row) -> Any:
    """What was answered, in either tool's layout."""
    return row.get("choices", row.get("messages"))


def how_made(
    rows: Iterable[tuple[str, Row]], file: Path, official_tokens: int
) -> tuple[dict[str, Any], list[str]]:
    """(how the answers of these rows were made, for the record; in what that departs from the benchmark's).

    Raises:
        DataError: a row says so in another layout.
    """
    makings: list[Mapping[str, Any] | None] = []
    seen: list[Any] = []
    for place, row in rows:
        making = row.get(MADE_WITH)
        if making is not None and not (
            isinstance(making, dict) and isinstance(making.get("answer_tokens"), int)
        ):
            raise DataError(
                f"{place}: '{MADE_WITH}' must be an object with 'answer_tokens'; remove it, and the answer counts as "
                "made by others"
            )
        if _making(row) not in seen:
            seen.append(_making(row))
            makings.append(making)
    told = [making for making in makings if making is not None]
    departures = [
        f"answers of at most {tokens} tokens, not {official_tokens}"
        for tokens in dict.fromkeys(making["answer_tokens"] for making in told)
        if tokens != official_tokens
    ]
    if any(making.get("thinking") != "keep" for making in told):
        departures.append("<think> blocks taken out of the answers")
    if len(makings) == len(told) == 1:
        return dict(told[0]), departures
    if told:
        departures.append("answers made in several ways")
        return {"answers": f"{file.name}: made in several ways", "makings": makings}, departures
    return {"answers": f"read from {file.name}; how they were made is not recorded"}, departures
