"""Checked rows on disk: their records, and their tokens where they were tokenized, read when asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.data.encoders import Assembled
from holdfast.data.lengths import LengthReport, SideLengths
from holdfast.data.records import PreferenceRecord, Record, SFTRecord
from holdfast.data.splits import digest_of_ids, position, sides_of

if TYPE_CHECKING:
    import datasets
    import pyarrow

BLOCK = 256  # records read in one go
INDEX = ("row_index", "row_id")


class StoredRows:
    """The good rows of a source, in their order; memory holds none of their texts or tokens.

    Iterating gives the records. `tokens` is what a trainer reads.
    """

    def __init__(self, dataset: datasets.Dataset) -> None:
        self._dataset = dataset

    @classmethod
    def open(cls, path: Path) -> StoredRows:
        """The rows of a file that tables of `table_of` were written to."""
        import datasets

        return cls(datasets.Dataset.from_file(str(path)))

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Record]:
        texts = self._dataset.select_columns(["record"])
        for start in range(0, len(texts), BLOCK):
            for text in texts[start : start + BLOCK]["record"]:
                yield from_json(text)

    @property
    def ids(self) -> list[str]:
        """The records' ids."""
        ids: list[str] = self._dataset["row_id"][:]
        return ids

    @property
    def tokens(self) -> datasets.Dataset:
        """Columns `prompt_ids`, `chosen_ids`, `rejected_ids`, or `input_ids`, `completion_mask`; with the row's
        id (`row_id`) and its number among the good rows of the source (`row_index`). Memory-mapped.
        """
        names = [name for name in self._dataset.column_names if name.endswith(("_ids", "_mask"))]
        return self._dataset.select_columns([*names, *INDEX])

    def select(self, rows: Iterable[int]) -> StoredRows:
        """Some of the rows, by number."""
        return StoredRows(self._dataset.select(rows))

    def split(self, fractions: Mapping[str, float]) -> dict[str, StoredRows]:
        """Disjoint by prompt, as `split_by_prompt` with the seed that the rows were checked with."""
        sides = sides_of(self._dataset["position"][:], fractions)
        return {name: self.select(rows) for name, rows in sides.items()}

    def digest(self) -> str:
        """The name of this set of rows: `splits.digest` of their records."""
        return digest_of_ids(self.ids)

    def lengths(self) -> LengthReport:
        """What the length rule did to these rows (not to those it left out)."""
        report = LengthReport()
        columns = self._dataset.with_format("numpy")
        for name in self._dataset.column_names:
            if name.endswith("_tokens"):
                side = name.removesuffix("_tokens")
                tokens, cut = columns[name][:], columns[f"{side}_cut"][:]
                report.sides[side] = SideLengths(
                    len(tokens), int((cut > 0).sum()), int(tokens.sum()), int(cut.sum())
                )
        return report


@contextmanager
def writing(path: Path) -> Iterator[Callable[[pyarrow.Table], None]]:
    """A file of rows, and what writes a table of `table_of` behind those before."""
    import pyarrow as pa

    written = 0
    writer: Any = None

    def write(table: pa.Table) -> None:
        nonlocal written, writer
        numbered = table.add_column(
            0, "row_index", pa.array(range(written, written + len(table)), pa.int64())
        )
        if writer is None:
            writer = pa.ipc.new_stream(str(path), numbered.schema)
        writer.write_table(numbered)
        written += len(table)

    try:
        yield write
        if writer is None:  # a file without rows has columns all the same
            write(pa.table({name: pa.array([], pa.string()) for name in ("row_id", "record")}))
    finally:
        if writer is not None:
            writer.close()


def table_of(rows: Sequence[tuple[Record, Assembled[Any] | None]], seed: int) -> pyarrow.Table:
    """Records and what they became (None: only texts) as columns to write to a file, without `row_index`.

    Of each side, `<side>_tokens` is its length before the cut and `<side>_cut` what it lost.
    """
    import pyarrow as pa

    columns: dict[str, Any] = {
        "row_id": pa.array([record.id for record, _ in rows]),
        "position": pa.array([position(record, seed) for record, _ in rows]),
        "record": pa.array([to_json(record) for record, _ in rows]),
    }
    encoded = [outcome for _, outcome in rows if outcome is not None]
    if encoded:
        for side in encoded[0].lengths:
            lengths = [outcome.lengths[side] for outcome in encoded]
            columns[f"{side}_tokens"] = pa.array([before for before, _ in lengths], pa.int32())
            columns[f"{side}_cut"] = pa.array([before - after for before, after in lengths], pa.int32())
        for field in fields(encoded[0].row):  # type: ignore[arg-type]
            if field.name != "id":
                kind = pa.bool_() if field.name.endswith("_mask") else pa.int32()
                values = [getattr(outcome.row, field.name) for outcome in encoded]
                columns[field.name] = pa.array(values, pa.list_(kind))
    return pa.table(columns)


def to_json(record: Record) -> str:
    """The record as ASCII JSON; absent values are left out."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return json.dumps({name: value for name, value in values.items() if value is not None}, default=str)


def from_json(text: str) -> Record:
    """The record that `to_json` wrote."""
    values = json.loads(text)
    return PreferenceRecord(**values) if "chosen" in values else SFTRecord(**values)
