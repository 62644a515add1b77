"""One record -> its tokens: rendered, checked (see `turn_checks`), and cut by the length rule (see `lengths`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, get_args

from holdfast.data.faults import Problem, RowFault
from holdfast.data.lengths import LengthReport, LengthRule, cut_left
from holdfast.data.records import Message, PreferenceRecord, Record, SFTRecord, as_row
from holdfast.data.rendering import ChatRenderer
from holdfast.data.template_content import check_answer_text, check_prompt_text
from holdfast.data.turn_checks import (
    SHOWN,
    check_answer_bos,
    check_prefix,
    check_prompt,
    check_prompt_bos,
    check_vocabulary,
    end_of_turn,
    show_parting,
)
from holdfast.errors import ConfigError, did_you_mean

TrainOn = Literal["last", "all"]
R = TypeVar("R", bound=Record)
E = TypeVar("E")
T = TypeVar("T")


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


@dataclass(frozen=True, slots=True)
class Assembled(Generic[E]):
    """What a record became.

    Attributes:
        lengths: by side, the tokens before and after the cut.
        row: its tokens; None where the length rule leaves the record out.
        left_out: why it does.
        reworded: whether the template drops or changes text of earlier assistant turns.
    """

    lengths: dict[str, tuple[int, int]]
    row: E | None = None
    left_out: Literal["dropped", "equal_after_cut"] | None = None
    reworded: bool = False

    def count_in(self, report: LengthReport) -> None:
        """Count it in the report of many."""
        if self.left_out == "dropped":
            report.dropped += 1
        elif self.left_out == "equal_after_cut":
            report.equal_after_cut += 1
        else:
            report.count(**self.lengths)


class Encoder(ABC, Generic[R, E]):
    """Records -> tokens, by one renderer and one length rule."""

    def __init__(self, chat: ChatRenderer, rule: LengthRule) -> None:
        self.chat = chat
        self.rule = rule

    def encode(self, records: Sequence[R]) -> list[Assembled[E] | Problem]:
        """What each record became, or why it cannot be used; their texts are tokenized in one call."""
        texts = [_attempt(record, self.render, record) for record in records]
        ids = iter(self.chat.tokenize_groups([own for own in texts if isinstance(own, list)]))
        return [
            own if isinstance(own, Problem) else _attempt(record, self.assemble, record, own, next(ids))
            for record, own in zip(records, texts, strict=True)
        ]

    @abstractmethod
    def render(self, record: R) -> list[str]:
        """The texts to tokenize."""

    @abstractmethod
    def assemble(self, record: R, texts: list[str], ids: list[list[int]]) -> Assembled[E]:
        """The tokens of the texts, checked, put together and cut.

        Raises:
            RowFault: a check that fails.
        """


class PairEncoder(Encoder[PreferenceRecord, EncodedPair]):
    """Pairs; the completions are what the full rendering adds to the prompt's."""

    def render(self, record: PreferenceRecord) -> list[str]:
        prompt = self.chat.render(record.prompt, record, add_generation_prompt=True)
        sides = [[*record.prompt, *side] for side in (record.chosen, record.rejected)]
        return [prompt, *(self.chat.render(side, record, add_generation_prompt=False) for side in sides)]

    def assemble(
        self, record: PreferenceRecord, texts: list[str], ids: list[list[int]]
    ) -> Assembled[EncodedPair]:
        chat, prompt = self.chat, ids[0]
        check_prompt(chat, prompt)
        check_prompt_bos(chat, prompt, record.prompt)
        reworded = check_prompt_text(record.prompt, texts[0])
        completions = []
        for text, tokens in zip(texts[1:], ids[1:], strict=True):
            check_prefix(chat, texts[0], text, prompt, tokens)
            completions.append(chat.closed(tokens[len(prompt) : end_of_turn(chat, tokens, len(prompt))]))
            check_vocabulary(chat, [*prompt, *completions[-1]])
        chosen, rejected = completions
        alike = "; so 'chosen' and 'rejected' render to the same tokens" if chosen == rejected else ""
        for side, text, tokens in zip((record.chosen, record.rejected), texts[1:], completions, strict=True):
            check_answer_text(side[0], texts[0], text, alike)
            check_answer_bos(chat, tokens, side)
        if chosen == rejected:
            raise RowFault(
                "equal_pair",
                "'chosen' and 'rejected' render to the same tokens: the chat template drops what tells them "
                "apart (whitespace, or keys beside 'content')",
            )
        room = self.rule.room(len(prompt), max(len(chosen), len(rejected)))
        kept = room or (0, 0)
        pair = EncodedPair(
            cut_left(prompt, kept[0], keep_first=prompt[0] == chat.bos),
            chosen[: kept[1]],
            rejected[: kept[1]],
            record.id,
        )
        lengths = {
            "prompt": (len(prompt), len(pair.prompt_ids)),
            "chosen": (len(chosen), len(pair.chosen_ids)),
            "rejected": (len(rejected), len(pair.rejected_ids)),
        }
        if room is None:
            return Assembled(lengths, left_out="dropped")
        if pair.chosen_ids == pair.rejected_ids:
            return Assembled(lengths, left_out="equal_after_cut")
        return Assembled(lengths, pair, reworded=reworded)


class SFTEncoder(Encoder[SFTRecord, EncodedSFT]):
    """Demonstrations, with the tokens to train marked; see `chat.encode_sft` for which these are.

    Raises:
        ConfigError: an unknown `train_on`.
    """

    def __init__(self, chat: ChatRenderer, rule: LengthRule, train_on: TrainOn = "last") -> None:
        if train_on not in get_args(TrainOn):
            raise ConfigError(f"train_on '{train_on}' is unknown{did_you_mean(train_on, get_args(TrainOn))}")
        super().__init__(chat, rule)
        self.train_on = train_on

    def render(self, record: SFTRecord) -> list[str]:
        """The whole conversation; then for each trained turn its prompt, and all up to its end."""
        if record.text is not None:
            return []
        texts = [self.chat.render(record.messages, record, add_generation_prompt=False)]
        for index in _trained_turns(record, self.train_on):
            texts.append(self.chat.render(record.messages[:index], record, add_generation_prompt=True))
            texts.append(self.chat.render(record.messages[: index + 1], record, add_generation_prompt=False))
        return texts

    def assemble(self, record: SFTRecord, texts: list[str], ids: list[list[int]]) -> Assembled[EncodedSFT]:
        chat = self.chat
        reworded = False
        if record.text is None:
            turns = _trained_turns(record, self.train_on)
            check_prompt(chat, ids[1])
            check_prompt_bos(chat, ids[-2], record.messages[: turns[-1]])
            reworded = check_prompt_text(record.messages[: turns[-1]], texts[-2])
            tokens, mask = _masked_turns([record.messages[index] for index in turns], texts, ids, chat)
        else:
            tokens, mask = _masked_text(record.text, chat)
        check_vocabulary(chat, tokens)
        first = mask.index(True)
        room = self.rule.room(first, len(tokens) - first)
        kept = room or (0, 0)
        prompt = cut_left(tokens[:first], kept[0], keep_first=tokens[0] == chat.bos)
        completion = tokens[first : first + kept[1]]
        lengths = {"prompt": (first, len(prompt)), "completion": (len(tokens) - first, len(completion))}
        if room is None:
            return Assembled(lengths, left_out="dropped")
        mask = [False] * len(prompt) + mask[first : first + kept[1]]
        return Assembled(lengths, EncodedSFT(prompt + completion, mask, record.id), reworded=reworded)


def _trained_turns(record: SFTRecord, train_on: TrainOn) -> list[int]:
    """Indices of the assistant turns to train."""
    start = record.completion_start if train_on == "last" else 1
    return [n for n in range(start, len(record.messages)) if record.messages[n]["role"] == "assistant"]


def _masked_turns(
    turns: list[Message], texts: list[str], ids: list[list[int]], chat: ChatRenderer
) -> tuple[list[int], list[bool]]:
    """Tokens of a conversation up to the end of its last turn, and the mask of its trained `turns`."""
    whole = ids[0]
    spans: list[tuple[int, int]] = []
    for n, answer in zip(range(1, len(ids), 2), turns, strict=True):
        prompt_ids, turn_ids = ids[n], ids[n + 1]
        check_prefix(chat, texts[n], texts[n + 1], prompt_ids, turn_ids)
        is_last = n + 2 == len(ids)
        end = end_of_turn(chat, turn_ids, len(prompt_ids), may_stay_open=is_last)
        if turn_ids[:end] != whole[:end]:
            alone, within = show_parting(chat, turn_ids[:end], whole)
            raise RowFault(
                "template",
                "the chat template renders an assistant turn otherwise once the conversation goes on: as "
                f"the last turn {alone}, within the conversation {within}. Such a template can train the "
                "last turn only: set `train_on: last`",
            )
        check_answer_text(answer, texts[n], texts[n + 1])
        check_answer_bos(chat, turn_ids[len(prompt_ids) : end], [answer])
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
    if chat.bos is not None and tokens[:2] == [chat.bos] * 2:
        raise RowFault(
            "template",
            f"the text spells the BOS that the tokenizer adds itself: {chat.show(tokens[:SHOWN])}; take it out of "
            "the text",
            check="one_bos",
        )
    if len(tokens) < 2:
        raise RowFault(
            "empty_completion",
            f"the text is one token, {chat.show(tokens)}, and nothing predicts it",
            check="completion_has_tokens",
        )
    return tokens, [False] + [True] * (len(tokens) - 1)


def _attempt(record: Record, action: Callable[..., T], *inputs: Any) -> T | Problem:
    """`action(*inputs)`, or the fault of the record that it meets."""
    try:
        return action(*inputs)
    except RowFault as fault:
        return fault.at(record.where).problem(as_row(record))
