"""A tokenizer and its chat template: what they make of a conversation, and what must hold to train on it.

Faults of a template are errors that show the text or the tokens; nothing is repaired or guessed in silence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

from holdfast.data.faults import RowFault
from holdfast.data.memory_limit import memory_limit
from holdfast.data.messages import not_template_inputs
from holdfast.data.records import Message, Record
from holdfast.data.time_limit import OverTime, time_limit
from holdfast.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 6  # tokens shown on each side of a fault
CONTEXT = 40  # characters shown on each side of a fault
# What a template may take for one conversation: seconds (microseconds are usual), and bytes, which are watched for the
# first ones alone, for it costs a tenth of a row; and the characters it may make, beside so many times those given.
LONGEST = 20
MOST_MEMORY, WATCHED = 4 << 30, 100
MOST_ADDED, MOST_TIMES = 1 << 20, 16


class ChatRenderer:
    """Conversations -> text -> tokens, by one tokenizer, with the checks a trained turn must pass.

    Args:
        tokenizer: a transformers tokenizer.
        append_eos: close the last turn with the tokenizer's EOS where the template closes it with no special
            token.
        vocab_size: rows of the model's embedding; None leaves token ids unchecked.
        chat_template_kwargs: inputs of the template for every row; a row's own go before them.

    Raises:
        DataError: `append_eos` and a tokenizer without EOS.
        ConfigError: `chat_template_kwargs` that are arguments of the tokenizer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        append_eos: bool = False,
        vocab_size: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.append_eos = append_eos
        self.vocab_size = vocab_size
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.name = tokenizer.name_or_path or type(tokenizer).__name__
        self.bos: int | None = tokenizer.bos_token_id
        self.bos_text = str(tokenizer.bos_token)
        self.eos_to_append: list[int] = [tokenizer.eos_token_id] if append_eos else []
        self.end_tokens = _end_tokens(tokenizer)
        self._rendered = 0
        if taken := not_template_inputs(self.chat_template_kwargs):
            raise ConfigError(f"chat_template_kwargs: {taken}")
        if append_eos and tokenizer.eos_token_id is None:
            raise DataError(f"append_eos: the tokenizer '{self.name}' has no EOS token")

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer begins texts with BOS. Asked of it once, when first needed."""
        return self.bos is not None and self.tokenizer("a")["input_ids"][:1] == [self.bos]

    def render(self, messages: Sequence[Message], record: Record, *, add_generation_prompt: bool) -> str:
        """The template's text for `messages`, with the record's tools and template inputs.

        Raises:
            DataError: the tokenizer has no chat template, or one that does not come to an end.
            RowFault: `template`, where the template refuses the conversation.
        """
        if not self.tokenizer.chat_template:
            raise DataError(
                f"the tokenizer '{self.name}' has no chat template, and none is made up for it. Set "
                "`chat_template` (`model.chat_template` in a run's YAML) to a .jinja file, or to a tokenizer whose "
                "template to take (a base model's instruct variant, say)"
            )
        try:
            self._rendered += 1
            watch = memory_limit(MOST_MEMORY) if self._rendered <= WATCHED else nullcontext()
            with time_limit(LONGEST), watch:
                text = self.tokenizer.apply_chat_template(
                    list(messages),
                    tools=record.tools,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **self.chat_template_kwargs | (record.chat_template_kwargs or {}),
                )
        except OverTime as error:
            # not set aside with its row: each of the others may well take as long
            raise DataError(
                f"{record.where}: the chat template of '{self.name}' computes for more than {LONGEST} seconds on "
                "this conversation; it may never come to an end"
            ) from error
        except MemoryError as error:
            raise DataError(
                f"{record.where}: the chat template of '{self.name}' asks for more than {MOST_MEMORY >> 30} GiB of "
                "memory on this conversation"
            ) from error
        except Exception as error:  # a template is a program, and can fail in any way
            raise RowFault(
                "template", f"the chat template refuses this conversation: {type(error).__name__}: {error}"
            ) from error
        given = sum(len(message["content"]) for message in messages)
        if len(text) > MOST_ADDED + MOST_TIMES * given and not record.tools:
            raise DataError(
                f"{record.where}: the chat template of '{self.name}' makes {len(text):,} characters of a conversation "
                f"of {given:,}: it cannot be meant so"
            )
        return str(text)

    def trained_header(self, prompt: Sequence[Message], answer: Message, record: Record) -> str:
        """What stands between prompt and answer, and is trained, where the template ignores
        `add_generation_prompt`; empty where it does not, or writes nothing there.

        Args:
            prompt, answer: a conversation of `record` that the template renders.
        """
        if not answer["content"].strip():
            return ""
        asked = self.render(prompt, record, add_generation_prompt=True)
        try:
            plain = self.render(prompt, record, add_generation_prompt=False)
        except RowFault:  # it minds so much that it refuses to go without
            return ""
        if asked != plain:
            return ""
        added = self.render([*prompt, answer], record, add_generation_prompt=False)[len(asked) :]
        return added[: max(0, added.find(answer["content"].split()[0]))].strip()

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of rendered texts. The template writes the special tokens, so none is added."""
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def tokenize_groups(self, groups: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """As `tokenize` for every text of every group; what the texts of a group share is tokenized once.

        A text is cut only where a special token begins: the tokenizer cuts there itself, first of all, so the
        tokens of the parts are those of the whole.
        """
        heads = [self._shared_head(texts) for texts in groups]
        tails = [text[len(head) :] for head, texts in zip(heads, groups, strict=True) for text in texts]
        parts = list(dict.fromkeys([*heads, *tails]))
        ids = dict(zip(parts, self.tokenize(parts), strict=True))
        return [
            [ids[head] + ids[text[len(head) :]] for text in texts]
            for head, texts in zip(heads, groups, strict=True)
        ]

    def _shared_head(self, texts: Sequence[str]) -> str:
        """What all texts begin with, up to the last special token of the shortest (normally, the prompt)."""
        shared = min(texts, key=len, default="")
        if len(texts) < 2 or self._cuts is None or not all(text.startswith(shared) for text in texts):
            return ""
        return shared[: max((match.start() for match in self._cuts.finditer(shared)), default=0)]

    @cached_property
    def _cuts(self) -> re.Pattern[str] | None:
        """Finds special tokens that cut a text wherever they stand: written as they are, overlapping no other."""
        if getattr(self.tokenizer, "backend_tokenizer", None) is None:
            return None
        added = list(self.tokenizer.added_tokens_decoder.values())
        plain = [
            t for t in added if t.special and not (t.normalized or t.lstrip or t.rstrip or t.single_word)
        ]
        names = [
            token.content for token in plain if not any(_overlap(o.content, token.content) for o in added)
        ]
        return re.compile("|".join(map(re.escape, names))) if names else None

    def tokenize_text(self, text: str) -> list[int]:
        """Token ids of raw text, with the special tokens the tokenizer itself adds."""
        ids: list[int] = self.tokenizer(text, verbose=False)["input_ids"]
        return ids

    def check_prompt(self, prompt_ids: Sequence[int]) -> None:
        """A prompt has tokens, and BOS at its head where the tokenizer begins texts with it.

        Raises:
            RowFault: `template` otherwise.
        """
        if not prompt_ids:
            raise RowFault(
                "template", "the chat template renders the prompt to no tokens", check="prompt_is_prefix"
            )
        if self.adds_bos and prompt_ids[0] != self.bos:
            raise RowFault(
                "template",
                f"the tokenizer begins texts with {self.show([self.bos])}, but the rendered prompt begins "
                f"with {self.show(prompt_ids[:SHOWN])}; put {{{{ bos_token }}}} at the head of the chat "
                "template",
                check="one_bos",
            )

    def check_prompt_bos(self, prompt_ids: Sequence[int], messages: Sequence[Message]) -> None:
        """A prompt has no BOS behind its first token but those that the messages spell, and those that open a
        turn right behind an end token (Llama 2). Where the tokenizer begins no text with BOS, whitespace may
        stand between (SmolLM2, whose `<|im_start|>` is its BOS).

        Raises:
            RowFault: `template` otherwise.
        """
        if self.bos is None or self.bos in self.end_tokens or prompt_ids.count(self.bos) < 2:
            return
        places = [n for n, token in enumerate(prompt_ids) if token == self.bos]
        extra = [n for n in places if n > 0 and not self._opens_turn(prompt_ids, n)]
        if len(extra) > self._spelled_bos(messages):
            around = slice(max(0, extra[0] - SHOWN // 2), extra[0] + SHOWN // 2)
            raise RowFault(
                "template",
                f"the rendered prompt has {len(places)} BOS tokens: {self.show(prompt_ids[around])}; "
                "remove all but the first from the chat template",
                check="one_bos",
            )

    def check_answer_bos(self, completion_ids: Sequence[int], messages: Sequence[Message]) -> None:
        """A completion has no BOS but those that the messages spell.

        Raises:
            RowFault: `template` otherwise.
        """
        if self.bos is None or self.bos in self.end_tokens or self.bos not in completion_ids:
            return
        if completion_ids.count(self.bos) > self._spelled_bos(messages):
            at = completion_ids.index(self.bos)
            raise RowFault(
                "template",
                "the chat template puts a BOS token into the answer, which the model would learn to write: "
                f"{self.show(completion_ids[max(0, at - SHOWN // 2) : at + SHOWN // 2])}; remove it from the "
                "assistant's turn (or let the generation prompt write it)",
                check="one_bos",
            )

    def _opens_turn(self, ids: Sequence[int], place: int) -> bool:
        """Whether the token at `place` stands behind an end token."""
        before = place - 1
        while not self.adds_bos and before > 0 and not self.tokenizer.decode([ids[before]]).strip():
            before -= 1
        return ids[before] in self.end_tokens

    def _spelled_bos(self, messages: Sequence[Message]) -> int:
        """How often the messages' own text spells BOS."""
        return json.dumps(list(messages), ensure_ascii=False, default=str).count(self.bos_text)

    def check_prefix(
        self, prompt: str, full: str, prompt_ids: Sequence[int], full_ids: Sequence[int]
    ) -> None:
        """What a prompt renders and tokenizes to is how prompt and completion begin.

        Args:
            prompt, prompt_ids: the prompt with the generation prompt, as text and tokens.
            full, full_ids: the conversation with the completion.

        Raises:
            RowFault: `template` otherwise, showing where the two part.
        """
        if not full[len(prompt) :].strip() and prompt.startswith(full.rstrip()):
            raise self._no_answer()
        if not full.startswith(prompt):
            at = _first_difference(prompt, full)
            raise RowFault(
                "template",
                "the prompt as rendered for generation is not how the whole conversation begins: "
                f"it goes on {_around(prompt, at)}, the conversation {_around(full, at)}. The model would be "
                "trained on another prompt than it is asked with; mend the chat template, or set "
                "`chat_template_kwargs`",
                check="prompt_is_prefix",
            )
        if list(full_ids[: len(prompt_ids)]) != list(prompt_ids):
            alone, within = self.show_parting(prompt_ids, full_ids)
            raise RowFault(
                "template",
                "the tokenizer merges the prompt's end with the completion's beginning: the prompt alone "
                f"gives {alone}, with the completion {within}. Let the template's generation prompt end "
                "with a special token, or take leading whitespace off the completion",
                check="prompt_is_prefix",
            )

    def end_of_turn(self, ids: Sequence[int], start: int, *, may_stay_open: bool = True) -> int:
        """Index just past the end token of the turn that begins at `start` and is the last of `ids`.

        The end token is the last special token, with nothing but whitespace after it: that is the template's,
        and the model never has to write it. Where there is none, `append_eos` is set and the turn
        `may_stay_open`: `len(ids)`.

        Raises:
            RowFault: `template` where there is no turn, or no special token ends it; `empty_completion` where nothing
                precedes it.
        """
        last = next((n for n in range(len(ids) - 1, start - 1, -1) if ids[n] in self.end_tokens), None)
        if last is None and len(ids) - start <= SHOWN and not self.tokenizer.decode(ids[start:]).strip():
            raise self._no_answer()
        if last is not None and not self.tokenizer.decode(ids[last + 1 :]).strip():
            content, end = ids[start:last], last + 1
        elif self.append_eos and may_stay_open:
            content, end = ids[start:], len(ids)
        else:
            raise RowFault(
                "template",
                "no special token ends the assistant's turn, so the model would never learn to stop. Its "
                f"last tokens: {self.show(ids[start:][-SHOWN:])}. End the turn with {{{{ eos_token }}}} in "
                "the chat template, or (for the last turn) set `append_eos` (`model.append_eos`)",
                check="end_is_trained",
            )
        if len(content) <= SHOWN and not self.tokenizer.decode(content).strip():
            raise RowFault(
                "empty_completion",
                "the chat template leaves nothing of the completion but its end",
                check="completion_has_tokens",
            )
        return end

    def _no_answer(self) -> RowFault:
        return RowFault(
            "template",
            "the chat template does not render the answer: the conversation with its last turn gives no more "
            "than the prompt; mend the chat template's assistant turn",
            check="completion_is_rendered",
        )

    def closed(self, ids: Sequence[int]) -> list[int]:
        """`ids`, and behind them EOS where `append_eos` is set and they end with no end token."""
        return [*ids, *(self.eos_to_append if self.end_tokens.isdisjoint(ids[-1:]) else [])]

    def check_vocabulary(self, ids: Sequence[int]) -> None:
        """Every token has a row in the model's embedding.

        Raises:
            RowFault: `vocabulary` otherwise.
        """
        if self.vocab_size is not None and ids and (largest := max(ids)) >= self.vocab_size:
            raise RowFault(
                "vocabulary",
                f"token {self.show([largest])} has id {largest}, but the model's vocabulary has "
                f"{self.vocab_size} rows (the tokenizer '{self.name}' has {len(self.tokenizer)} tokens); "
                "take the model's own tokenizer, or resize the model's embeddings",
            )

    def show(self, ids: Sequence[int | None]) -> str:
        """Tokens as a reader can tell them apart: `['<s>', ' a']`."""
        return str([self.tokenizer.decode([token]) for token in ids if token is not None])

    def show_parting(self, left: Sequence[int], right: Sequence[int]) -> tuple[str, str]:
        """The tokens around the first place where two sequences differ."""
        at = _first_difference(left, right)
        around = slice(max(0, at - SHOWN), at + SHOWN)
        return self.show(left[around]), self.show(right[around])


def _end_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Special tokens that can end a turn: all but the unknown token and a BOS that is not also EOS."""
    flagged = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    never = {tokenizer.unk_token_id, tokenizer.bos_token_id} - {tokenizer.eos_token_id}
    return frozenset((flagged | set(tokenizer.all_special_ids)) - never)


def _overlap(left: str, right: str) -> bool:
    """Whether `right` can begin inside `left`."""
    tails = (left[index:] for index in range(1, len(left)))
    return any(right.startswith(tail) or tail.startswith(right) for tail in tails)


def _around(text: str, at: int) -> str:
    return repr(text[max(0, at - CONTEXT) : at + CONTEXT])


def _first_difference(left: Sequence[Any], right: Sequence[Any]) -> int:
    shorter = min(len(left), len(right))
    return next((n for n in range(shorter) if left[n] != right[n]), shorter)
