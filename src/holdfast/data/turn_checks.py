"""What must hold of a conversation's tokens to train on them: one BOS, the prompt as it is asked, an end to learn.

Faults of a template are errors that show the text or the tokens; nothing is repaired or guessed in silence. `chat` is
the tokenizer and the template that made them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from holdfast.data.faults import RowFault
from holdfast.data.records import Message
from holdfast.data.rendering import ChatRenderer

SHOWN = 6  # tokens shown on each side of a fault
CONTEXT = 40  # characters shown on each side of a fault


def check_prompt(chat: ChatRenderer, prompt_ids: Sequence[int]) -> None:
    """A prompt has tokens, and BOS at its head where the tokenizer begins texts with it.

    Raises:
        RowFault: `template` otherwise.
    """
    if not prompt_ids:
        raise RowFault(
            "template", "the chat template renders the prompt to no tokens", check="prompt_is_prefix"
        )
    if chat.adds_bos and prompt_ids[0] != chat.bos:
        raise RowFault(
            "template",
            f"the tokenizer begins texts with {chat.show([chat.bos])}, but the rendered prompt begins "
            f"with {chat.show(prompt_ids[:SHOWN])}; put {{{{ bos_token }}}} at the head of the chat "
            "template",
            check="one_bos",
        )


def check_prompt_bos(chat: ChatRenderer, prompt_ids: Sequence[int], messages: Sequence[Message]) -> None:
    """A prompt has no BOS behind its first token but those that the messages spell, and those that open a
    turn right behind an end token (Llama 2). Where the tokenizer begins no text with BOS, whitespace may
    stand between (SmolLM2, whose `<|im_start|>` is its BOS).

    Raises:
        RowFault: `template` otherwise.
    """
    if chat.bos is None or chat.bos in chat.end_tokens or prompt_ids.count(chat.bos) < 2:
        return
    places = [n for n, token in enumerate(prompt_ids) if token == chat.bos]
    extra = [n for n in places if n > 0 and not _opens_turn(chat, prompt_ids, n)]
    if len(extra) > _spelled_bos(chat, messages):
        around = slice(max(0, extra[0] - SHOWN // 2), extra[0] + SHOWN // 2)
        raise RowFault(
            "template",
            f"the rendered prompt has {len(places)} BOS tokens: {chat.show(prompt_ids[around])}; "
            "remove all but the first from the chat template",
            check="one_bos",
        )


def _opens_turn(chat: ChatRenderer, ids: Sequence[int], place: int) -> bool:
    """Whether the token at `place` stands behind an end token."""
    before = place - 1
    while not chat.adds_bos and before > 0 and not chat.tokenizer.decode([ids[before]]).strip():
        before -= 1
    return ids[before] in chat.end_tokens


def check_answer_bos(chat: ChatRenderer, completion_ids: Sequence[int], messages: Sequence[Message]) -> None:
    """A completion has no BOS but those that the messages spell.

    Raises:
        RowFault: `template` otherwise.
    """
    if chat.bos is None or chat.bos in chat.end_tokens or chat.bos not in completion_ids:
        return
    if completion_ids.count(chat.bos) > _spelled_bos(chat, messages):
        at = completion_ids.index(chat.bos)
        raise RowFault(
            "template",
            "the chat template puts a BOS token into the answer, which the model would learn to write: "
            f"{chat.show(completion_ids[max(0, at - SHOWN // 2) : at + SHOWN // 2])}; remove it from the "
            "assistant's turn (or let the generation prompt write it)",
            check="one_bos",
        )


def _spelled_bos(chat: ChatRenderer, messages: Sequence[Message]) -> int:
    """How often the messages' own text spells BOS."""
    return json.dumps(list(messages), ensure_ascii=False, default=str).count(chat.bos_text)


def check_prefix(
    chat: ChatRenderer, prompt: str, full: str, prompt_ids: Sequence[int], full_ids: Sequence[int]
) -> None:
    """What a prompt renders and tokenizes to is how prompt and completion begin.

    Args:
        prompt, prompt_ids: the prompt with the generation prompt, as text and tokens.
        full, full_ids: the conversation with the completion.

    Raises:
        RowFault: `template` otherwise, showing where the two part.
    """
    if not full[len(prompt) :].strip() and prompt.startswith(full.rstrip()):
        raise _no_answer()
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
        alone, within = show_parting(chat, prompt_ids, full_ids)
        raise RowFault(
            "template",
            "the tokenizer merges the prompt's end with the completion's beginning: the prompt alone "
            f"gives {alone}, with the completion {within}. Let the template's generation prompt end "
            "with a special token, or take leading whitespace off the completion",
            check="prompt_is_prefix",
        )


def end_of_turn(chat: ChatRenderer, ids: Sequence[int], start: int, *, may_stay_open: bool = True) -> int:
    """Index just past the end token of the turn that begins at `start` and is the last of `ids`.

    The end token is the last special token, with nothing but whitespace after it: that is the template's,
    and the model never has to write it. Where there is none, `append_eos` is set and the turn
    `may_stay_open`: `len(ids)`.

    Raises:
        RowFault: `template` where there is no turn, or no special token ends it; `empty_completion` where nothing
            precedes it.
    """
    last = next((n for n in range(len(ids) - 1, start - 1, -1) if ids[n] in chat.end_tokens), None)
    if last is None and len(ids) - start <= SHOWN and not chat.tokenizer.decode(ids[start:]).strip():
        raise _no_answer()
    if last is not None and not chat.tokenizer.decode(ids[last + 1 :]).strip():
        content, end = ids[start:last], last + 1
    elif chat.append_eos and may_stay_open:
        content, end = ids[start:], len(ids)
    else:
        raise RowFault(
            "template",
            "no special token ends the assistant's turn, so the model would never learn to stop. Its "
            f"last tokens: {chat.show(ids[start:][-SHOWN:])}. End the turn with {{{{ eos_token }}}} in "
            "the chat template, or (for the last turn) set `append_eos` (`model.append_eos`)",
            check="end_is_trained",
        )
    if len(content) <= SHOWN and not chat.tokenizer.decode(content).strip():
        raise RowFault(
            "empty_completion",
            "the chat template leaves nothing of the completion but its end",
            check="completion_has_tokens",
        )
    return end


def _no_answer() -> RowFault:
    return RowFault(
        "template",
        "the chat template does not render the answer: the conversation with its last turn gives no more "
        "than the prompt; mend the chat template's assistant turn",
        check="completion_is_rendered",
    )


def check_vocabulary(chat: ChatRenderer, ids: Sequence[int]) -> None:
    """Every token has a row in the model's embedding.

    Raises:
        RowFault: `vocabulary` otherwise.
    """
    if chat.vocab_size is not None and ids and (largest := max(ids)) >= chat.vocab_size:
        raise RowFault(
            "vocabulary",
            f"token {chat.show([largest])} has id {largest}, but the model's vocabulary has "
            f"{chat.vocab_size} rows (the tokenizer '{chat.name}' has {len(chat.tokenizer)} tokens); "
            "take the model's own tokenizer, or resize the model's embeddings",
        )


def show_parting(chat: ChatRenderer, left: Sequence[int], right: Sequence[int]) -> tuple[str, str]:
    """The tokens around the first place where two sequences differ."""
    at = _first_difference(left, right)
    around = slice(max(0, at - SHOWN), at + SHOWN)
    return chat.show(left[around]), chat.show(right[around])


def _around(text: str, at: int) -> str:
    return repr(text[max(0, at - CONTEXT) : at + CONTEXT])


def _first_difference(left: Sequence[Any], right: Sequence[Any]) -> int:
    shorter = min(len(left), len(right))
    return next((n for n in range(shorter) if left[n] != right[n]), shorter)
