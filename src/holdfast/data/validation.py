"""Every row checked before anything is trained: strict refuses bad rows, lenient sets them aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
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
LISTED = 5000  # bad rows that an error lists, and that a report holds; the quarantine file has all of them
FIRST = 20  # bad rows that an error lists where most rows are bad: then it is not the rows


class InvalidRows(DataError):
    """Rows that strict validation refuses; `problems` holds them, the first `LISTED` of a source's."""

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
    """Rows with the layout of their file, in their order and one at a time; args and errors as `check_rows`.

    Memory holds at most the `SAMPLE` rows that decide a layout.
    """
    chosen: Format | None = None
    if format is not None:
        chosen = replace(get_format(format, kind), taken="the layout that was named").seeded(seed)
    for file, group in groupby(rows, key=lambda item: file_of(item[0])):
        form = chosen
        for sample in _sample(group, 1 if chosen is not None else SAMPLE):
            readable = [row for _, row in sample if not isinstance(row, Unreadable)]
            if form is None and readable:
                form = detect_format(readable, kind, file or "these rows").seeded(seed)
            for where, row in sample:
                yield LaidOutRow(where, row, form)


def _sample(group: Iterator[tuple[str, Any]], size: int) -> Iterator[list[tuple[str, Any]]]:
    """A file's rows: one by one, but from the first that can be read `size` together."""
    for item in group:
        if not isinstance(item[1], Unreadable):
            yield [item, *islice(group, size - 1)]
            break
        yield [item]
    yield from ([item] for item in group)


def enforce(checked: Checked[T], mode: Mode = "strict", quarantine: Path | None = None) -> list[T]:
    """The good rows, once the bad ones are dealt with.

    Args:
        mode: `strict` refuses any bad row; `lenient` sets bad rows aside.
        quarantine: file the bad rows are written to under `lenient` (replaced if it exists).

    Raises:
        InvalidRows: `strict` and there is a bad row; or no good row is left.
    """
    require_mode(mode)
    if (mode == "strict" and checked.problems) or not checked.records:
        counts, rows, good = checked.counts, checked.rows, len(checked.records)
        raise InvalidRows(refusal("", checked.problems, counts, rows, good), checked.problems)
    if quarantine is not None:
        write_quarantine(checked.problems, quarantine)
    return checked.records


def require_mode(mode: str) -> None:
    """Raise a ConfigError unless `mode` is a `Mode`."""
    if mode not in get_args(Mode):
        raise ConfigError(f"validation mode '{mode}' is unknown{did_you_mean(mode, get_args(Mode))}")


def refusal(
    source: str,
    problems: Sequence[Problem],
    counts: Mapping[str, int],
    rows: int,
    good: int,
    left_out: int = 0,
) -> str:
    """What is wrong with a source that is refused, each bad row by its place, and how to go on.

    Args:
        problems: the bad rows, or the first of them.
        counts: bad rows of each reason.
        rows, good, left_out: rows read, those that can be trained on, and those the length rule leaves out.
    """
    name = f"{source}: " if source else ""
    if not rows:
        return f"{name or 'the source: '}there are no rows."
    bad = sum(counts.values())
    lines = [f"{name}{bad} of {rows} rows cannot be used"]
    if bad:
        lines[0] += ": " + ", ".join(f"{reason} {count}" for reason, count in counts.items())
    listed = problems[: FIRST if 2 * bad > rows else LISTED]
    lines += [f"  {problem}" for problem in listed]
    if bad > len(listed):
        lines.append(
            f"  ... and {bad - len(listed)} more; `holdfast check --quarantine FILE` writes all of them"
        )
    if left_out:
        lines.append(f"{left_out} rows are left out by the length limits (`data.max_length`).")
    if good:
        lines.append(
            f"Mend these rows, or set `data.validation=lenient` to train on the other {good}; "
            "the bad ones are then written to quarantine.jsonl."
        )
    else:
        lines.append("No usable row is left.")
    return "\n".join(lines)


def count_reasons(problems: Iterable[Problem]) -> dict[str, int]:
    """Problems of each reason, most frequent first."""
    return dict(Counter(problem.reason for problem in problems).most_common())


def write_quarantine(problems: Iterable[Problem], path: Path, *, append: bool = False) -> None:
    """Write bad rows to `path`, one JSON object a line: where, reason, detail, row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if append else "w", encoding="ascii") as file:
        file.writelines(problem.as_json() + "\n" for problem in problems)
