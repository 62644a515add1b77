"""Whether the text of a conversation survives its chat template.

Whitespace does not count: templates trim it (Llama 3) and set it anew (Qwen3, around `<think>`). Left out are
messages of role `tool`, and those with `tool_calls`: templates write them in forms of their own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice

from holdfast.data.faults import RowFault
from holdfast.data.records import INSTRUCTIONS, Message

SHOWN = 40  # characters shown on each side of the place where a text departs


def check_prompt_text(messages: Sequence[Message], rendered: str) -> bool:
    """Every text of a system or user is in the rendered prompt, the users' in their order.

    Returns:
        Whether the text of an earlier assistant turn is dropped or changed, as templates do with reasoning.

    Raises:
        RowFault: `template` otherwise, showing what is lost.
    """
    texts = [(str(message["role"]), str(message["content"])) for message in messages if _is_text(message)]
    if _search([(role, text.strip()) for role, text in texts], rendered) == (None, False):
        return False
    packed = _packed(rendered)
    lost, reworded = _search([(role, _packed(text)) for role, text in texts], packed)
    if lost is not None:
        number, start = lost
        role, text = texts[number]  # as the row has it
        raise RowFault(
            "template",
            f"the chat template drops or changes text of the prompt's {role} turn: "
            f"{_departure(text, packed[start:])}. The model would be trained on another prompt than the row's; "
            "mend the chat template",
            check="prompt_is_rendered",
        )
    return reworded


def check_answer_text(answer: Message, prompt: str, full: str, consequence: str = "") -> None:
    """The answer's text is in what the full rendering adds to the prompt's.

    It may begin inside the prompt, whose generation prompt can open with the `<think>` of the answer.

    Args:
        prompt, full: rendered texts; `full` begins with `prompt`.
        consequence: what follows from a loss, for the message.

    Raises:
        RowFault: `template` otherwise, showing what is lost.
    """
    if not _is_text(answer) or full.find(answer["content"].strip(), len(prompt)) >= 0:
        return
    text, before, added = _packed(answer["content"]), _packed(prompt), _packed(full[len(prompt) :])
    # one character short of the text: it has to end behind the prompt
    behind = before[max(0, len(before) - len(text) + 1) :] + added
    if text in behind:
        return
    raise RowFault(
        "template",
        "the chat template drops or changes text of the answer: "
        f"{_departure(answer['content'], behind)}{consequence}. Mend the chat template (many drop what stands "
        "before `</think>`), or take that text out of the row",
        check="completion_is_rendered",
    )


def _is_text(message: Message) -> bool:
    """Whether a template is to write the message's content as it stands."""
    return message["role"] != "tool" and not message.get("tool_calls") and isinstance(message["content"], str)


def _search(texts: Sequence[tuple[str, str]], rendered: str) -> tuple[tuple[int, int] | None, bool]:
    """The first lost text of a system or user, with where its search began; whether an assistant's is lost.

    Texts of users stand in their order. Those of the system can stand anywhere: some templates put them into the
    first user's turn, some into the last.
    """
    start, reworded = 0, False
    for number, (role, text) in enumerate(texts):
        if role in INSTRUCTIONS:
            if text not in rendered:
                return (number, 0), reworded
            continue
        at = rendered.find(text, start)
        if role == "assistant":
            reworded = reworded or at < 0
        elif at < 0:
            return (number, start), reworded
        else:
            start = at + len(text)
    return None, reworded


def _packed(text: str) -> str:
    """The text without whitespace."""
    return "".join(text.split())


def _departure(text: str, rendered: str) -> str:
    """Where `text` departs from a rendering without whitespace that lacks it, in words."""
    packed = _packed(text)
    held, lacking = 0, len(packed)  # lengths of a beginning that is there, and of one that is not
    while lacking - held > 1:
        middle = (held + lacking) // 2
        held, lacking = (middle, lacking) if packed[:middle] in rendered else (held, middle)
    at = next(islice(re.finditer(r"\S", text), held, None)).start()
    at -= min(len(re.split(r"\s", text[:at])[-1]), SHOWN // 2)  # from the beginning of the word
    lost = f"the rendering lacks {text[at : at + SHOWN]!r}"
    return f"behind {text[max(0, at - SHOWN) : at]!r} {lost}" if text[:at].strip() else lost
