"""Every row checked before anything is trained: strict refuses bad rows, lenient sets them aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args, overload

from holdfast.data.faults import Problem, RowFault, Unreadable
from holdfast.data.formats import Format, Kind, detect_format, get_format
from holdfast.data.records import PreferenceRecord, Record, SFTRecord
from holdfast.data.sources import file_of
from holdfast.errors import ConfigError, DataError, did_you_mean

Mode = Literal["strict", "lenient"]
T = TypeVar("T")

SAMPLE = 200  # rows of a file that decide its layout
SHOWN = 20  # problems listed in an error message; all of them are in `InvalidRows.problems`


class InvalidRows(DataError):
    """Rows that strict validation refuses; `problems` holds every one."""

    def __init__(self, message: str, problems: list[Problem]) -> None:
        super().__init__(message)
        self.problems = problems


@dataclass(frozen=True)
class Checked(Generic[T]):
    """What a pass over rows found.

    Attributes:
        records: the good rows, in their order.
        problems: the bad rows, in their order.
        formats: the layout of each file, or of the one data set.
        rules: for layouts that draw pairs from several completions, how: for the run record.
    """

    records: list[T]
    problems: list[Problem] = field(default_factory=list)
    formats: dict[str, str] = field(default_factory=dict)
    rules: dict[str, str] = field(default_factory=dict)

    @property
    def format(self) -> str:
        """The layouts found, each once: normally one."""
        return ", ".join(dict.fromkeys(self.formats.values()))

    @property
    def rows(self) -> int:
        """Rows seen, good and bad."""
        return len(self.records) + len(self.problems)

    @property
    def counts(self) -> dict[str, int]:
        """Bad rows of each reason, most frequent first: for the run record."""
        return count_reasons(self.problems)


@overload
def check_rows(
    rows: Iterable[tuple[str, Any]],
    kind: Literal["preference"] = ...,
    format: str | None = ...,
    *,
    seed: int = ...,
) -> Checked[PreferenceRecord]: ...
@overload
def check_rows(
    rows: Iterable[tuple[str, Any]], kind: Literal["sft"], format: str | None = ..., *, seed: int = ...
) -> Checked[SFTRecord]: ...
def check_rows(
    rows: Iterable[tuple[str, Any]], kind: Kind = "preference", format: str | None = None, *, seed: int = 0
) -> Checked[Any]:
    """Turn rows into records, and set aside those that cannot be.

    Args:
        rows: `(where, row)` as `read_rows` gives them.
        kind: what the rows are to serve as.
        format: the name of their layout; by default found out for each file.
        seed: of the layouts that draw a pair from several completions.

    Raises:
        DataError: a file whose rows have no known layout.
        ConfigError: no layout is called `format`, or it does not hold what `kind` needs.
    """
    checked: Checked[Any] = Checked([])
    for row in lay_out(rows, kind, format, seed=seed):
        if row.form is not None:
            checked.formats[file_of(row.where)] = row.form.name
            if row.form.rule:
                checked.rules[row.form.name] = row.form.rule
        record = row.record(kind)
        if isinstance(record, Problem):
            checked.problems.append(record)
        else:
            checked.records.append(record)
    return checked


@dataclass(frozen=True, slots=True)
class LaidOutRow:
    """A row as it was read, with its place and its file's layout (None until a row of the file can be read)."""

    where: str
    row: Any
    form: Format | None

    def record(self, kind: Kind) -> Record | Problem:
        """The row as what `kind` needs, or why it cannot be."""
        if isinstance(self.row, Unreadable):
            return Problem(self.where, self.row.reason, self.row.detail, self.row.text)
        assert self.form is not None  # the layout was found as soon as a row could be read
        try:
            if kind == "preference":
                return self.form.to_preference(self.row, self.where)
            return self.form.to_sft(self.row, self.where)
        except RowFault as fault:
            return fault.problem(self.row)


def lay_out(
    rows: Iterable[tuple[str, Any]], kind: Kind, format: str | None = None, *, seed: int = 0
) -> Iterator[LaidOutRow]:
    """Rows with the layout of their file, in their order and one at a time; args and errors as `check_rows`."""
    chosen = get_format(format, kind) if format is not None else None
    for file, group in groupby(rows, key=lambda item: file_of(item[0])):
        sample = _sample(group)
        readable = [row for _, row in sample if not isinstance(row, Unreadable)]
        form = chosen
        if form is None and readable:
            form = detect_format(readable, kind, file or "these rows")
        if form is not None:
            form = form.seeded(seed)
        for where, row in chain(sample, group):
            yield LaidOutRow(where, row, form)


def _sample(group: Iterator[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The first rows of a file: `SAMPLE` of them, and more while none can be read."""
    sample, readable = [], False
    for item in group:
        sample.append(item)
        readable = readable or not isinstance(item[1], Unreadable)
        if readable and len(sample) >= SAMPLE:
            break
    return sample


def enforce(checked: Checked[T], mode: Mode = "strict", quarantine: Path | None = None) -> list[T]:
    """The good rows, once the bad ones are dealt with.

    Args:
        mode: `strict` refuses any bad row; `lenient` sets bad rows aside.
        quarantine: file the bad rows are written to under `lenient` (replaced if it exists).

    Raises:
        InvalidRows: `strict` and there is a bad row; or no good row is left.
    """
    if mode not in get_args(Mode):
        raise ConfigError(f"validation mode '{mode}' is unknown{did_you_mean(mode, get_args(Mode))}")
    if mode == "strict" and checked.problems:
        raise InvalidRows(f"{describe(checked)}\n{_way_on(checked)}", checked.problems)
    if quarantine is not None:
        write_quarantine(checked.problems, quarantine)
    if not checked.records:
        raise InvalidRows(f"{describe(checked)}\nNo usable row is left.", checked.problems)
    return checked.records


def describe(checked: Checked[Any]) -> str:
    """Counts by reason, and the first bad rows by place."""
    lines = [f"{len(checked.problems)} of {checked.rows} rows cannot be used"]
    if checked.problems:
        lines[0] += ": " + ", ".join(f"{reason} {count}" for reason, count in checked.counts.items())
    lines += [f"  {problem}" for problem in checked.problems[:SHOWN]]
    if len(checked.problems) > SHOWN:
        lines.append(f"  ... and {len(checked.problems) - SHOWN} more")
    return "\n".join(lines)


def _way_on(checked: Checked[Any]) -> str:
    if not checked.records:
        return "No usable row is left."
    return (
        f"Mend these rows, or set `validation: lenient` to train on the other {len(checked.records)}; "
        "the bad ones are then written to quarantine.jsonl."
    )


def count_reasons(problems: Iterable[Problem]) -> dict[str, int]:
    """Problems of each reason, most frequent first."""
    return dict(Counter(problem.reason for problem in problems).most_common())


def write_quarantine(problems: Iterable[Problem], path: Path, *, append: bool = False) -> None:
    """Write bad rows to `path`, one JSON object a line: where, reason, detail, row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if append else "w", encoding="ascii") as file:
        file.writelines(problem.as_json() + "\n" for problem in problems)
