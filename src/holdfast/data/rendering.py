"""A tokenizer and its chat template: what they make of a conversation.

What must hold of it to be trained on is in `turn_checks`.
"""

from __future__ import annotations

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

# What a template may take for one conversation: seconds (microseconds are usual), and bytes, which are watched for the
# first ones alone, for it costs a tenth of a row; and the characters it may make, beside so many times those given.
LONGEST = 20
MOST_MEMORY, WATCHED = 4 << 30, 100
MOST_ADDED, MOST_TIMES = 1 << 20, 16


class ChatRenderer:
    """Conversations -> text -> tokens, by one tokenizer.

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

    def closed(self, ids: Sequence[int]) -> list[int]:
        """`ids`, and behind them EOS where `append_eos` is set and they end with no end token."""
        return [*ids, *(self.eos_to_append if self.end_tokens.isdisjoint(ids[-1:]) else [])]

    def show(self, ids: Sequence[int | None]) -> str:
        """Tokens as a reader can tell them apart: `['<s>', ' a']`."""
        return str([self.tokenizer.decode([token]) for token in ids if token is not None])


def _end_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Special tokens that can end a turn: all but the unknown token and a BOS that is not also EOS."""
    flagged = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    never = {tokenizer.unk_token_id, tokenizer.bos_token_id} - {tokenizer.eos_token_id}
    return frozenset((flagged | set(tokenizer.all_special_ids)) - never)


def _overlap(left: str, right: str) -> bool:
    """Whether `right` can begin inside `left`."""
    tails = (left[index:] for index in range(1, len(left)))
    return any(right.startswith(tail) or tail.startswith(right) for tail in tails)
