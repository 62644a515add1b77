"""Records -> tokens and completion masks: checked (see `rendering`), and cut by one rule (see `lengths`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from holdfast.data.faults import Problem, RowFault
from holdfast.data.lengths import LengthReport, LengthRule, cut_left
from holdfast.data.records import PreferenceRecord, Record, SFTRecord, as_row
from holdfast.data.rendering import ChatRenderer
from holdfast.data.validation import Checked, InvalidRows, enforce
from holdfast.errors import ConfigError, DataError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["EncodedPair", "EncodedSFT", "LengthReport", "LengthRule", "TrainOn", "encode_pairs", "encode_sft"]

TrainOn = Literal["last", "all"]
R = TypeVar("R", bound=Record)
E = TypeVar("E")

BATCH = 256  # rows tokenized in one call


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Token ids of a pair: one prompt, and each completion with its end token."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    id: str


@dataclass(frozen=True, slots=True)
class EncodedSFT:
    """Token ids of a demonstration, and which of them are trained."""

    input_ids: list[int]
    completion_mask: list[bool]
    id: str


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
    report = LengthReport()

    def render(record: PreferenceRecord) -> list[str]:
        prompt = chat.render(record.prompt, record, add_generation_prompt=True)
        sides = [[*record.prompt, *side] for side in (record.chosen, record.rejected)]
        return [prompt, *(chat.render(side, record, add_generation_prompt=False) for side in sides)]

    def assemble(record: PreferenceRecord, texts: list[str], ids: list[list[int]]) -> EncodedPair | None:
        prompt = ids[0]
        chat.check_prompt(prompt)
        completions = []
        for text, tokens in zip(texts[1:], ids[1:], strict=True):
            chat.check_prefix(texts[0], text, prompt, tokens)
            completions.append(chat.closed(tokens[len(prompt) : chat.end_of_turn(tokens, len(prompt))]))
            chat.check_vocabulary([*prompt, *completions[-1]])
        chosen, rejected = completions
        if chosen == rejected:
            raise RowFault("equal_pair", "'chosen' and 'rejected' render to the same tokens")
        kept = rule.room(len(prompt), max(len(chosen), len(rejected)))
        if kept is None:
            report.dropped += 1
            return None
        pair = EncodedPair(
            cut_left(prompt, kept[0], keep_first=prompt[0] == chat.bos),
            chosen[: kept[1]],
            rejected[: kept[1]],
            record.id,
        )
        if pair.chosen_ids == pair.rejected_ids:
            report.equal_after_cut += 1
            return None
        report.count(
            prompt=(len(prompt), len(pair.prompt_ids)),
            chosen=(len(chosen), len(pair.chosen_ids)),
            rejected=(len(rejected), len(pair.rejected_ids)),
        )
        return pair

    return _encode(records, chat, render, assemble, report, problems), report


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
    if train_on not in get_args(TrainOn):
        raise ConfigError(f"train_on '{train_on}' is unknown{did_you_mean(train_on, get_args(TrainOn))}")
    chat = ChatRenderer(
        tokenizer, append_eos=append_eos, vocab_size=vocab_size, chat_template_kwargs=chat_template_kwargs
    )
    report = LengthReport()

    def render(record: SFTRecord) -> list[str]:
        """The whole conversation; then for each trained turn its prompt, and all up to its end."""
        if record.text is not None:
            return []
        texts = [chat.render(record.messages, record, add_generation_prompt=False)]
        for index in _trained_turns(record, train_on):
            texts.append(chat.render(record.messages[:index], record, add_generation_prompt=True))
            texts.append(chat.render(record.messages[: index + 1], record, add_generation_prompt=False))
        return texts

    def assemble(record: SFTRecord, texts: list[str], ids: list[list[int]]) -> EncodedSFT | None:
        tokens, mask = (
            _masked_turns(texts, ids, chat) if record.text is None else _masked_text(record.text, chat)
        )
        chat.check_vocabulary(tokens)
        first = mask.index(True)
        kept = rule.room(first, len(tokens) - first)
        if kept is None:
            report.dropped += 1
            return None
        prompt = cut_left(tokens[:first], kept[0], keep_first=tokens[0] == chat.bos)
        end = first + kept[1]
        report.count(prompt=(first, len(prompt)), completion=(len(tokens) - first, len(tokens[first:end])))
        return EncodedSFT(prompt + tokens[first:end], [False] * len(prompt) + mask[first:end], record.id)

    return _encode(records, chat, render, assemble, report, problems), report


def _trained_turns(record: SFTRecord, train_on: TrainOn) -> list[int]:
    """Indices of the assistant turns to train."""
    start = record.completion_start if train_on == "last" else 1
    return [n for n in range(start, len(record.messages)) if record.messages[n]["role"] == "assistant"]


def _masked_turns(texts: list[str], ids: list[list[int]], chat: ChatRenderer) -> tuple[list[int], list[bool]]:
    """Tokens of a conversation up to the end of its last turn, and the mask of its trained turns."""
    whole = ids[0]
    chat.check_prompt(ids[1])
    spans: list[tuple[int, int]] = []
    for n in range(1, len(ids), 2):
        prompt_ids, turn_ids = ids[n], ids[n + 1]
        chat.check_prefix(texts[n], texts[n + 1], prompt_ids, turn_ids)
        is_last = n + 2 == len(ids)
        end = chat.end_of_turn(turn_ids, len(prompt_ids), may_stay_open=is_last)
        if turn_ids[:end] != whole[:end]:
            alone, within = chat.show_parting(turn_ids[:end], whole)
            raise RowFault(
                "template",
                "the chat template renders an assistant turn otherwise once the conversation goes on: as "
                f"the last turn {alone}, within the conversation {within}. Such a template can train the "
                "last turn only: set `train_on: last`",
            )
        spans.append((len(prompt_ids), end))
    tokens = chat.closed(whole[: spans[-1][1]])
    spans.append((spans[-1][1], len(tokens)))  # the EOS that `closed` may have added
    mask = [False] * len(tokens)
    for start, end in spans:
        mask[start:end] = [True] * (end - start)
    return tokens, mask


def _masked_text(text: str, chat: ChatRenderer) -> tuple[list[int], list[bool]]:
    """Tokens of raw text, and the mask of all but the first."""
    tokens = chat.closed(chat.tokenize_text(text))
    if len(tokens) < 2:
        raise RowFault(
            "empty_completion", f"the text is one token, {chat.show(tokens)}, and nothing predicts it"
        )
    return tokens, [False] + [True] * (len(tokens) - 1)


def _encode(
    records: Iterable[R],
    chat: ChatRenderer,
    render: Callable[[R], list[str]],
    assemble: Callable[[R, list[str], list[list[int]]], E | None],
    report: LengthReport,
    problems: list[Problem] | None,
) -> list[E]:
    """Render and tokenize a batch at a time, assemble row by row, and set aside the rows that fail."""
    encoded: list[E] = []
    faults: list[Problem] = []
    stream = iter(records)
    while batch := list(islice(stream, BATCH)):
        jobs: list[tuple[R, list[str]]] = []
        for record in batch:
            with _faults_to(faults, record):
                jobs.append((record, render(record)))
        ids = iter(chat.tokenize([text for _, texts in jobs for text in texts]))
        for record, texts in jobs:
            own = list(islice(ids, len(texts)))
            with _faults_to(faults, record):
                row = assemble(record, texts, own)
                if row is not None:
                    encoded.append(row)
        if problems is None and len(faults) == BATCH and not encoded:
            # The template's or the tokenizer's fault, not the rows': the others would tell nothing new.
            raise InvalidRows(f"none of the first {BATCH} rows can be trained on:\n  {faults[0]}", faults)
    if problems is not None:
        problems.extend(faults)
    if not encoded and not faults:
        raise DataError(f"no row is left to train on\n{report}".strip())
    return enforce(Checked(encoded, faults), "strict" if problems is None else "lenient")


@contextmanager
def _faults_to(faults: list[Problem], record: Record) -> Iterator[None]:
    """Put a fault of `record` into `faults` instead of raising it."""
    try:
        yield
    except RowFault as fault:
        faults.append(Problem(record.where, fault.reason, fault.detail, as_row(record)))
