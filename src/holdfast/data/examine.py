"""Rows, a chunk at a time, held against what training needs: `examine`, the work of a check in any process."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

from holdfast.data.check_report import Example
from holdfast.data.encoders import (
    Assembled,
    EncodedPair,
    EncodedSFT,
    Encoder,
    PairEncoder,
    SFTEncoder,
    TrainOn,
)
from holdfast.data.faults import Problem
from holdfast.data.findings import Findings, as_hash, pick
from holdfast.data.formats import Kind
from holdfast.data.lengths import LengthRule
from holdfast.data.records import Message, PreferenceRecord, Record, SFTRecord, canonical_json
from holdfast.data.rendering import ChatRenderer
from holdfast.data.stored import table_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


LABELS = ("label", "kto_tag")  # keys that say whether an answer is wanted, for training by KTO


class Row(Protocol):
    """A row to check: as it was read from a file, or a record."""

    @property
    def row(self) -> Any:
        """The row itself, for the quarantine."""

    def record(self, kind: Kind) -> Record | Problem:
        """The row as what `kind` needs, or why it cannot be."""


@dataclass(frozen=True)
class Checker:
    """What checking a chunk of rows needs, in any process.

    Attributes:
        kind: what the rows are to serve as.
        encoder: renders and tokenizes every row, with the checks of training; None leaves rows as text.
        seed: chooses the examples, the sides of a split, and the pairs of layouts that draw them.
        examples: rows to show as the model will read them.
        keep: whether the good rows' records and tokens are handed back too.
    """

    kind: Kind
    encoder: Encoder[Any, Any] | None = None
    seed: int = 0
    examples: int = 3
    keep: bool = False


def checker(
    kind: Kind,
    tokenizer: PreTrainedTokenizerBase | None = None,
    rule: LengthRule | None = None,
    *,
    train_on: TrainOn = "last",
    append_eos: bool = False,
    vocab_size: int | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    examples: int = 3,
) -> Checker:
    """A checker for rows of `kind`.

    Args:
        tokenizer: see `Checker.encoder`; without one the other settings of tokens do nothing.
        rule: how long rows may be; by default, any length.
        train_on: see `encode_sft`.
        append_eos, vocab_size, chat_template_kwargs: see `ChatRenderer`.
    """
    encoder: Encoder[Any, Any] | None = None
    if tokenizer is not None:
        chat = ChatRenderer(
            tokenizer,
            append_eos=append_eos,
            vocab_size=vocab_size,
            chat_template_kwargs=chat_template_kwargs,
        )
        rule = rule or LengthRule(None)
        encoder = PairEncoder(chat, rule) if kind == "preference" else SFTEncoder(chat, rule, train_on)
    return Checker(kind, encoder, seed, examples)


def examine(checker: Checker, rows: list[Row]) -> Findings:
    """The findings of some consecutive rows."""
    found = Findings(rows=len(rows))
    good: list[tuple[Row, Record, Any]] = []
    for row, record, outcome in _outcomes(checker, rows):
        if isinstance(outcome, Problem):
            found.refuse(outcome)
            continue
        if isinstance(outcome, Assembled):
            outcome.count_in(found.report)
            if outcome.row is None:
                continue
            found.measure({side: before for side, (before, _) in outcome.lengths.items()})
        else:
            found.measure(_characters(record))
        good.append((row, record, outcome))
    found.good = len(good)
    control = _control_tokens(checker.encoder)
    for row, record, outcome in good:
        _note(found, row, record, control)
        if isinstance(outcome, Assembled) and outcome.reworded:
            found.reworded.add(record.where)
    found.header = _trained_header(checker.encoder, [record for _, record, _ in good])
    picked = nsmallest(checker.examples, good, key=lambda item: pick(checker.seed, item[1].id))
    for _, record, outcome in reversed(picked):  # of equal rows, the first
        found.examples[pick(checker.seed, record.id)] = _example(checker.encoder, record, outcome)
    if checker.keep and good:
        found.kept = table_of([(record, outcome) for _, record, outcome in good], checker.seed)
    return found


def _outcomes(checker: Checker, rows: Sequence[Row]) -> Iterator[tuple[Row, Any, Any]]:
    """Each row with its record, and its tokens (None without an encoder) or why it cannot be used."""
    records = [row.record(checker.kind) for row in rows]
    usable = [record for record in records if not isinstance(record, Problem)]
    encoded = iter(checker.encoder.encode(usable) if checker.encoder is not None else [None] * len(usable))
    for row, record in zip(rows, records, strict=True):
        if isinstance(record, Problem):
            yield row, None, record
            continue
        outcome = next(encoded)
        if isinstance(outcome, Problem):  # the quarantine keeps the row as it was read
            outcome = Problem(outcome.where, outcome.reason, outcome.detail, row.row, outcome.check)
        yield row, record, outcome


def _note(found: Findings, row: Row, record: Record, control: re.Pattern[str] | None) -> None:
    """What is no fault of a good row, yet worth counting."""
    text = isinstance(record, SFTRecord) and record.text is not None
    found.prompts.append(as_hash(record.text if text else canonical_json(record.prompt)))  # type: ignore[union-attr]
    found.ids.append(int(record.id, 16))
    if isinstance(record, PreferenceRecord):
        if record.score_chosen is not None and record.score_rejected is not None:
            found.scored += 1
            found.agreeing += record.score_chosen > record.score_rejected
    elif isinstance(row.row, Mapping) and any(_is_false(row.row.get(key)) for key in LABELS):
        found.unwanted.add(record.where)
    if control is not None and not text:
        spelled = next(filter(None, map(control.search, _contents(record))), None)
        if spelled is not None:
            found.spelled.add(f"{record.where}: {spelled.group()}")


def _is_false(label: Any) -> bool:
    """Whether a label says no; in CSV it is a word."""
    return label is False or (isinstance(label, str) and label.strip().lower() == "false")


def _control_tokens(encoder: Encoder[Any, Any] | None) -> re.Pattern[str] | None:
    """Finds the tokenizer's special tokens, spelled out in a text."""
    if encoder is None:
        return None
    tokenizer = encoder.chat.tokenizer
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    names = sorted({*added, *tokenizer.all_special_tokens}, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, names))) if names else None


def _trained_header(encoder: Encoder[Any, Any] | None, records: Sequence[Record]) -> str:
    """See `ChatRenderer.trained_header`: asked of the first conversation, as the template decides it for all."""
    first = next((record for record in records if record.prompt), None)
    if encoder is None or first is None:
        return ""
    messages = [*first.prompt, *first.chosen] if isinstance(first, PreferenceRecord) else first.messages
    return encoder.chat.trained_header(messages[:-1], messages[-1], first)


def _contents(record: Record) -> list[str]:
    messages = record.messages if isinstance(record, SFTRecord) else _all_messages(record)
    return [message["content"] for message in messages]


def _all_messages(record: PreferenceRecord) -> list[Message]:
    return [*record.prompt, *record.chosen, *record.rejected]


def _sides(record: Record) -> dict[str, list[Message]]:
    """The completions by name."""
    if isinstance(record, PreferenceRecord):
        return {"chosen": record.chosen, "rejected": record.rejected}
    return {"completion": record.messages[record.completion_start :]}


def _characters(record: Record) -> dict[str, int]:
    """Lengths by side; of raw text all is completion."""
    if isinstance(record, SFTRecord) and record.text is not None:
        return {"prompt": 0, "completion": len(record.text)}
    sides = {"prompt": record.prompt, **_sides(record)}
    return {side: sum(len(message["content"]) for message in turns) for side, turns in sides.items()}


def _example(encoder: Encoder[Any, Any] | None, record: Record, outcome: Any) -> Example:
    """The row as the model will read it; without a tokenizer, its texts."""
    if encoder is not None:
        decode = encoder.chat.tokenizer.decode
        return Example(
            record.where,
            {
                side: [(str(decode(ids)), trained) for ids, trained in pieces if ids]
                for side, pieces in _pieces(outcome.row).items()
            },
        )
    if isinstance(record, SFTRecord) and record.text is not None:
        return Example(record.where, {"completion": [(record.text, True)]})
    prompt = "".join(f"{message['role']}: {message['content']}\n" for message in record.prompt)
    return Example(
        record.where,
        {
            side: [
                (prompt, False),
                *((message["content"], message["role"] == "assistant") for message in turns),
            ]
            for side, turns in _sides(record).items()
        },
    )


def _pieces(row: EncodedPair | EncodedSFT) -> dict[str, list[tuple[list[int], bool]]]:
    """By side, stretches of tokens and whether they are trained."""
    if isinstance(row, EncodedPair):
        sides = {"chosen": row.chosen_ids, "rejected": row.rejected_ids}
        return {side: [(row.prompt_ids, False), (ids, True)] for side, ids in sides.items()}
    stretches = groupby(zip(row.input_ids, row.completion_mask, strict=True), key=lambda item: item[1])
    return {"completion": [([token for token, _ in own], trained) for trained, own in stretches]}
