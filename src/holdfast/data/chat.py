"""Records -> tokens and completion masks, many at a time: in batches, by several processes, faults set aside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from holdfast.data.encoders import EncodedPair, EncodedSFT, Encoder, PairEncoder, SFTEncoder, TrainOn
from holdfast.data.faults import Problem
from holdfast.data.lengths import LengthReport, LengthRule
from holdfast.data.processes import map_chunks
from holdfast.data.records import PreferenceRecord, SFTRecord
from holdfast.data.rendering import ChatRenderer
from holdfast.data.validation import Checked, InvalidRows, enforce
from holdfast.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["EncodedPair", "EncodedSFT", "LengthReport", "LengthRule", "TrainOn", "encode_pairs", "encode_sft"]

E = TypeVar("E")

BATCH = 256  # rows tokenized in one call


def encode_pairs(
    records: Iterable[PreferenceRecord],
    tokenizer: PreTrainedTokenizerBase,
    rule: LengthRule,
    *,
    append_eos: bool = False,
    vocab_size: int | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    problems: list[Problem] | None = None,
    num_proc: int = 1,
) -> tuple[list[EncodedPair], LengthReport]:
    """Render and tokenize pairs; the completions are what the full rendering adds to the prompt's.

    Args:
        append_eos, vocab_size, chat_template_kwargs: see `ChatRenderer`.
        problems: where rows that fail are put; by default any such row is an error.
        num_proc: processes to share the work; the result does not depend on it.

    Raises:
        DataError: no chat template, or no row is left.
        InvalidRows: rows that fail a check, each with its place; no row is left.
    """
    chat = ChatRenderer(
        tokenizer, append_eos=append_eos, vocab_size=vocab_size, chat_template_kwargs=chat_template_kwargs
    )
    return _encode(records, PairEncoder(chat, rule), problems, num_proc)


def encode_sft(
    records: Iterable[SFTRecord],
    tokenizer: PreTrainedTokenizerBase,
    rule: LengthRule,
    *,
    train_on: TrainOn = "last",
    append_eos: bool = False,
    vocab_size: int | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    problems: list[Problem] | None = None,
    num_proc: int = 1,
) -> tuple[list[EncodedSFT], LengthReport]:
    """Render and tokenize demonstrations, and mark the tokens to train.

    Trained are the assistant turns of the completion, each with its end token; with `train_on="all"` also
    those before it (but for one that opens the conversation: it answers nothing). Of raw text, every token
    but the first, which nothing predicts; it is closed with EOS only if `append_eos` is set.

    Args and errors: as `encode_pairs`. Where the length rule speaks of the prompt, it is here what precedes
    the first trained token.
    """
    chat = ChatRenderer(
        tokenizer, append_eos=append_eos, vocab_size=vocab_size, chat_template_kwargs=chat_template_kwargs
    )
    return _encode(records, SFTEncoder(chat, rule, train_on), problems, num_proc)


@dataclass
class EncodedBatch(Generic[E]):
    """What a batch of consecutive records became.

    Attributes:
        rows: tokens of the records that are kept, in their order.
        faults: place in the batch, and problem, of those that cannot be used.
        report: the lengths.
        seen: records in the batch.
    """

    rows: list[E] = field(default_factory=list)
    faults: list[tuple[int, Problem]] = field(default_factory=list)
    report: LengthReport = field(default_factory=LengthReport)
    seen: int = 0


def encode_batch(encoder: Encoder[Any, E], records: list[Any]) -> EncodedBatch[E]:
    """Encode the records in one go."""
    batch: EncodedBatch[E] = EncodedBatch(seen=len(records))
    for index, outcome in enumerate(encoder.encode(records)):
        if isinstance(outcome, Problem):
            batch.faults.append((index, outcome))
            continue
        outcome.count_in(batch.report)
        if outcome.row is not None:
            batch.rows.append(outcome.row)
    return batch


def encoded_batches(
    records: Iterable[Any], encoder: Encoder[Any, E], *, strict: bool, num_proc: int
) -> Iterator[EncodedBatch[E]]:
    """The records in batches of `BATCH`, in their order.

    Raises:
        InvalidRows: `strict`, and no row of the first batch can be used.
    """
    batches = map_chunks(encode_batch, encoder, records, chunk=BATCH, num_proc=num_proc)
    for number, batch in enumerate(batches):
        if strict and number == 0 and len(batch.faults) == BATCH:
            # The template's or the tokenizer's fault, not the rows': the others would tell nothing new.
            faults = [problem for _, problem in batch.faults]
            raise InvalidRows(f"none of the first {BATCH} rows can be trained on:\n  {faults[0]}", faults)
        yield batch


def settle(kept: int, faults: list[Problem], report: LengthReport, problems: list[Problem] | None) -> None:
    """Put the faults into `problems`; without such a list any fault is an error, and so is keeping no row.

    Raises:
        DataError, InvalidRows: as `encode_pairs`.
    """
    if problems is not None:
        problems.extend(faults)
    if not kept and not faults:
        raise DataError(f"no row is left to train on\n{report}".strip())
    enforce(Checked([None] * kept, faults), "strict" if problems is None else "lenient")


def _encode(
    records: Iterable[Any], encoder: Encoder[Any, E], problems: list[Problem] | None, num_proc: int
) -> tuple[list[E], LengthReport]:
    rows: list[E] = []
    faults: list[Problem] = []
    report = LengthReport()
    for batch in encoded_batches(records, encoder, strict=problems is None, num_proc=num_proc):
        rows += batch.rows
        faults += [problem for _, problem in batch.faults]
        report.merge(batch.report)
    settle(len(rows), faults, report, problems)
    return rows, report
