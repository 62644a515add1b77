"""Tokenized rows kept on disk under a hash of all they depend on: a second start tokenizes nothing.

A folder `<cache_dir>/<key>/` holds `rows.arrow`, read memory-mapped, and `report.json`: the lengths, and the rows
that cannot be used. It is written beside and renamed, so that it is whole or absent.
"""

from __future__ import annotations

import inspect
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from holdfast.data import chat, encoders, lengths, rendering
from holdfast.data.chat import EncodedBatch, encoded_batches, settle
from holdfast.data.encoders import Encoder, PairEncoder, SFTEncoder, TrainOn
from holdfast.data.faults import Problem
from holdfast.data.lengths import LengthReport, LengthRule, SideLengths
from holdfast.data.records import PreferenceRecord, Record, SFTRecord, as_row
from holdfast.data.rendering import ChatRenderer

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

# What decides the tokens of a record: an edit of these files, or another version of these packages, is a new key.
CODE: tuple[ModuleType, ...] = (chat, encoders, lengths, rendering)
PACKAGES = ("transformers", "tokenizers", "jinja2")

ROWS, REPORT = "rows.arrow", "report.json"


def prepared_pairs(
    records: Sequence[PreferenceRecord],
    tokenizer: PreTrainedTokenizerBase,
    rule: LengthRule,
    *,
    append_eos: bool = False,
    problems: list[Problem] | None = None,
    num_proc: int = 1,
    cache_dir: str | Path | None = None,
) -> tuple[datasets.Dataset, LengthReport]:
    """`encode_pairs`, kept on disk: columns `prompt_ids`, `chosen_ids`, `rejected_ids`, `row_index`, `row_id`.

    Args:
        problems, append_eos, num_proc: see `encode_pairs`. The key does not depend on them but for `append_eos`.
        cache_dir: where prepared rows are kept; by default `holdfast` in the cache folder of `datasets`.

    Returns:
        The rows, memory-mapped, in the order of their records (`row_index` counts them), and the lengths.

    Raises:
        DataError, InvalidRows: as `encode_pairs`; also for rows that an earlier, lenient call set aside.
    """
    import datasets

    encoder = PairEncoder(ChatRenderer(tokenizer, append_eos=append_eos), rule)
    columns = {name: _list_of("int32") for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
    features = datasets.Features(columns | _index_features())
    return _prepared(records, encoder, features, {}, problems, num_proc, cache_dir)


def prepared_sft(
    records: Sequence[SFTRecord],
    tokenizer: PreTrainedTokenizerBase,
    rule: LengthRule,
    *,
    train_on: TrainOn = "last",
    append_eos: bool = False,
    problems: list[Problem] | None = None,
    num_proc: int = 1,
    cache_dir: str | Path | None = None,
) -> tuple[datasets.Dataset, LengthReport]:
    """`encode_sft`, kept on disk: columns `input_ids`, `completion_mask`, `row_index`, `row_id`.

    Args, returns and errors: as `prepared_pairs`; `train_on`: see `encode_sft`.
    """
    import datasets

    encoder = SFTEncoder(ChatRenderer(tokenizer, append_eos=append_eos), rule, train_on)
    columns = {"input_ids": _list_of("int32"), "completion_mask": _list_of("bool")}
    features = datasets.Features(columns | _index_features())
    return _prepared(records, encoder, features, {"train_on": train_on}, problems, num_proc, cache_dir)


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """32 hexadecimal digits of all that a tokenizer does to text: vocabulary, rules, special tokens, template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        # Padding and truncation are of the last call, not of the tokenizer.
        state |= {"padding": None, "truncation": None}
    else:
        state = {
            "class": f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}",
            "vocabulary": tokenizer.get_vocab(),
            "settings": tokenizer.init_kwargs,
        }
    return _hash([state, tokenizer.chat_template, tokenizer.special_tokens_map])


def _prepared(
    records: Sequence[Record],
    encoder: Encoder[Any, Any],
    features: datasets.Features,
    settings: Mapping[str, Any],
    problems: list[Problem] | None,
    num_proc: int,
    cache_dir: str | Path | None,
) -> tuple[datasets.Dataset, LengthReport]:
    import datasets

    folder = _cache_folder(cache_dir) / _key(records, encoder, settings)
    if not folder.is_dir():
        _write(folder, records, encoder, features, problems is None, num_proc)
    report, faults = _read_report(folder / REPORT, records)
    dataset = datasets.Dataset.from_file(str(folder / ROWS))
    settle(len(dataset), faults, report, problems)
    return dataset, report


def _write(
    folder: Path,
    records: Sequence[Record],
    encoder: Encoder[Any, Any],
    features: datasets.Features,
    strict: bool,
    num_proc: int,
) -> None:
    """Encode the records into `folder`, batch by batch; another process that is done first wins."""
    from datasets.arrow_writer import ArrowWriter

    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    report = LengthReport()
    faults: list[tuple[int, str, str, str | None]] = []
    begun = kept = 0
    try:
        with ArrowWriter(path=str(beside / ROWS), features=features) as writer:
            for batch in encoded_batches(records, encoder, strict=strict, num_proc=num_proc):
                faults += [
                    (begun + index, fault.reason, fault.detail, fault.check) for index, fault in batch.faults
                ]
                report.merge(batch.report)
                if batch.rows:
                    writer.write_batch(_columns(batch, kept, features))
                begun, kept = begun + batch.seen, kept + len(batch.rows)
            writer.finalize()
        text = json.dumps({"lengths": report.as_dict(), "faults": faults})
        (beside / REPORT).write_text(text, encoding="ascii")
        try:
            beside.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _columns(batch: EncodedBatch[Any], first: int, features: datasets.Features) -> dict[str, Any]:
    tokens = [name for name in features if name not in ("row_index", "row_id")]
    return {
        **{name: [getattr(row, name) for row in batch.rows] for name in tokens},
        "row_index": list(range(first, first + len(batch.rows))),
        "row_id": [row.id for row in batch.rows],
    }


def _read_report(path: Path, records: Sequence[Record]) -> tuple[LengthReport, list[Problem]]:
    """The lengths, and the problems at the places where their records are now."""
    stored = json.loads(path.read_text(encoding="ascii"))
    lengths = stored["lengths"]
    sides = {name: SideLengths(**counts) for name, counts in lengths.pop("sides").items()}
    faults = [
        Problem(records[index].where, reason, detail, as_row(records[index]), check)
        for index, reason, detail, check in stored["faults"]
    ]
    return LengthReport(sides=sides, **lengths), faults


def _key(records: Sequence[Record], encoder: Encoder[Any, Any], settings: Mapping[str, Any]) -> str:
    inputs = {
        "encoder": type(encoder).__name__,
        "settings": dict(settings),
        "tokenizer": fingerprint(encoder.chat.tokenizer),
        "rule": asdict(encoder.rule),
        "append_eos": encoder.chat.append_eos,
        "code": [inspect.getsource(module) for module in CODE],
        "packages": {name: version(name) for name in PACKAGES},
        "rows": [record.id for record in records],
    }
    return _hash(inputs)


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _cache_folder(cache_dir: str | Path | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / "holdfast"


def _list_of(kind: str) -> Any:
    import datasets

    return datasets.List(datasets.Value(kind))


def _index_features() -> dict[str, Any]:
    import datasets

    return {"row_index": datasets.Value("int64"), "row_id": datasets.Value("string")}
