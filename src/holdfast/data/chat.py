"""Records -> tokens and completion masks, in memory: the plain form of what `intake` does to a whole source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from holdfast.data.encoders import EncodedPair, EncodedSFT, Encoder, PairEncoder, SFTEncoder, TrainOn
from holdfast.data.faults import Problem
from holdfast.data.lengths import LengthReport, LengthRule
from holdfast.data.records import PreferenceRecord, SFTRecord
from holdfast.data.rendering import ChatRenderer
from holdfast.data.validation import Checked, enforce
from holdfast.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["EncodedPair", "EncodedSFT", "LengthReport", "LengthRule", "TrainOn", "encode_pairs", "encode_sft"]

E = TypeVar("E")


def encode_pairs(
    records: Iterable[PreferenceRecord],
    tokenizer: PreTrainedTokenizerBase,
    rule: LengthRule,
    *,
    append_eos: bool = False,
    vocab_size: int | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    problems: list[Problem] | None = None,
) -> tuple[list[EncodedPair], LengthReport]:
    """Render and tokenize pairs; the completions are what the full rendering adds to the prompt's.

    Args:
        append_eos, vocab_size, chat_template_kwargs: see `ChatRenderer`.
        problems: where rows that fail are put; by default any such row is an error.

    Raises:
        DataError: no chat template, or no row is left.
        InvalidRows: rows that fail a check, each with its place; no row is left.
    """
    chat = ChatRenderer(
        tokenizer, append_eos=append_eos, vocab_size=vocab_size, chat_template_kwargs=chat_template_kwargs
    )
    return _encode(records, PairEncoder(chat, rule), problems)


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
    return _encode(records, SFTEncoder(chat, rule, train_on), problems)


def _encode(
    records: Iterable[Any], encoder: Encoder[Any, E], problems: list[Problem] | None
) -> tuple[list[E], LengthReport]:
    rows: list[E] = []
    faults: list[Problem] = []
    report = LengthReport()
    for outcome in encoder.encode(list(records)):
        if isinstance(outcome, Problem):
            faults.append(outcome)
            continue
        outcome.count_in(report)
        if outcome.row is not None:
            rows.append(outcome.row)
    if problems is not None:
        problems.extend(faults)
    if not rows and not faults:
        raise DataError(f"no row is left to train on\n{report}".strip())
    enforce(Checked([None] * len(rows), faults), "strict" if problems is None else "lenient")
    return rows, report
