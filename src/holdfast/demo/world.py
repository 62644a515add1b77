"""The tiny instruction world: short tasks, and one answer to each that a program can check.

Every function here is pure: the same arguments give the same tasks, on any machine. Prompts belong to one of
three sides (`sft`, `preference`, `held_out`) by a hash of their text, so no prompt is ever on two sides,
whatever the seeds and counts. A question has one wording, lest a held-out prompt be a trained one reworded.
"""

from __future__ import annotations

import hashlib
import json
import random
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

Answer = int | bool | str | list[int]
Side = Literal["sft", "preference", "held_out"]


@dataclass(frozen=True)
class Task:
    """One question of the world and its only right answer."""

    kind: str
    prompt: str
    answer: Answer


# --- the families: each draws one task -----------------------------------------------------------------


def arithmetic(rng: random.Random) -> Task:
    """A number under 100, plus or minus a digit (the answer may be negative)."""
    number, digit = rng.randrange(100), rng.randrange(10)
    if rng.random() < 0.5:
        return Task("arithmetic", f"what is {number} + {digit}?", number + digit)
    return Task("arithmetic", f"what is {number} - {digit}?", number - digit)


def sorting(rng: random.Random) -> Task:
    """Three or four different digits put in rising or falling order, or as many letters in the alphabet's."""
    if rng.random() < 0.5:
        digits = rng.sample(range(10), rng.randint(3, 4))
        order = rng.choice(["up", "down"])
        prompt = f"sort {' '.join(map(str, digits))} {order}"
        return Task("sorting", prompt, sorted(digits, reverse=order == "down"))
    letters = rng.sample(string.ascii_lowercase, rng.randint(3, 4))
    return Task("sorting", f"sort letters {''.join(letters)}", "".join(sorted(letters)))


def reversing(rng: random.Random) -> Task:
    """A string of three to six letters, backwards."""
    text = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 6)))
    return Task("reversing", f"reverse {text}", text[::-1])


def counting(rng: random.Random) -> Task:
    """How often a, b or c stands in a string of four to six of them."""
    text = "".join(rng.choices("abc", k=rng.randint(4, 6)))
    letter = rng.choice("abc")
    return Task("counting", f"count {letter} in {text}", text.count(letter))


def comparing(rng: random.Random) -> Task:
    """The larger or smaller of two different numbers, or whether the first is the larger."""
    left, right = rng.sample(range(100), 2)
    question = rng.choice(["larger", "smaller", "is"])
    if question == "is":
        return Task("comparing", f"is {left} > {right}?", left > right)
    answer = max(left, right) if question == "larger" else min(left, right)
    return Task("comparing", f"{question} of {left} and {right}?", answer)


def picking(rng: random.Random) -> Task:
    """The value of one field out of two or three, named a to d."""
    fields = {key: rng.randrange(100) for key in rng.sample("abcd", rng.randint(2, 3))}
    key = rng.choice(list(fields))
    listed = " ".join(f"{name}={value}" for name, value in fields.items())
    return Task("picking", f"{key} of {listed}", fields[key])


# A new family is one function and one entry here; `kinds` below decides who meets it.
FAMILIES: dict[str, Callable[[random.Random], Task]] = {
    "arithmetic": arithmetic,
    "sorting": sorting,
    "reversing": reversing,
    "counting": counting,
    "comparing": comparing,
    "picking": picking,
}
TRAINED_KINDS = tuple(FAMILIES)


def make_task(rng: random.Random, kinds: Sequence[str] = TRAINED_KINDS) -> Task:
    """One task of a family drawn evenly from `kinds`."""
    return FAMILIES[rng.choice(kinds)](rng)


# --- completions ---------------------------------------------------------------------------------------


def render_answer(answer: Answer) -> str:
    """The world's one answer format: `{"answer": 42}`."""
    return json.dumps({"answer": answer})


def right_completion(task: Task) -> str:
    """The completion a judge accepts."""
    return render_answer(task.answer)


def wrong_completion(task: Task, rng: random.Random) -> str:
    """A completion of the right format and type, a small change away from the right answer."""
    return render_answer(_nearby(task.answer, rng))


def _nearby(answer: Answer, rng: random.Random) -> Answer:
    """An answer of the same type that differs from `answer` in one place."""
    if isinstance(answer, bool):  # before int: a bool is one
        return not answer
    if isinstance(answer, int):
        steps = [step for step in (-10, -2, -1, 1, 2, 10) if answer < 0 or answer + step >= 0]
        return answer + rng.choice(steps)
    place = rng.randrange(len(answer))
    if isinstance(answer, str):
        other = rng.choice([letter for letter in string.ascii_lowercase if letter != answer[place]])
        return answer[:place] + other + answer[place + 1 :]
    other_digit = rng.choice([digit for digit in range(10) if digit != answer[place]])
    return [*answer[:place], other_digit, *answer[place + 1 :]]


# --- rows ----------------------------------------------------------------------------------------------


def side(prompt: str) -> Side:
    """The one side a prompt belongs to, by a hash of its text: 60 % sft, 30 % preference, 10 % held out."""
    bucket = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest()) % 10
    return "held_out" if bucket == 0 else "preference" if bucket <= 3 else "sft"


def _tasks(on: Side, seed: int, kinds: Sequence[str]) -> Iterator[Task]:
    rng = random.Random(f"{on}:{seed}")
    while True:
        task = make_task(rng, kinds)
        if side(task.prompt) == on:
            yield task


def sft_rows(
    count: int, seed: int, wrong_share: float = 0.35, kinds: Sequence[str] = TRAINED_KINDS
) -> list[dict[str, Any]]:
    """Demonstrations, `prompt` and `completion`; each is wrong with probability `wrong_share`."""
    rng = random.Random(f"demonstrations:{seed}")
    rows = []
    for _, task in zip(range(count), _tasks("sft", seed, kinds), strict=False):
        wrong = rng.random() < wrong_share
        completion = wrong_completion(task, rng) if wrong else right_completion(task)
        rows.append({"prompt": task.prompt, "completion": completion})
    return rows


def preference_pairs(tasks: Iterable[Task], seed: int) -> list[dict[str, Any]]:
    """`prompt`, `chosen` (right) and `rejected` (wrong, as well formed) for each task."""
    rng = random.Random(f"rejected:{seed}")
    return [
        {"prompt": task.prompt, "chosen": right_completion(task), "rejected": wrong_completion(task, rng)}
        for task in tasks
    ]


def preference_rows(count: int, seed: int, kinds: Sequence[str] = TRAINED_KINDS) -> list[dict[str, Any]]:
    """`count` preference pairs on prompts that no supervised row has."""
    tasks = (task for _, task in zip(range(count), _tasks("preference", seed, kinds), strict=False))
    return preference_pairs(tasks, seed)


def held_out(count: int, seed: int, kinds: Sequence[str] = TRAINED_KINDS) -> list[Task]:
    """`count` tasks with different prompts, none of which a training row can have.

    Raises ValueError when the families hold too few prompts for `count` different ones to be found.
    """
    found: dict[str, Task] = {}
    for _, task in zip(range(100 * count), _tasks("held_out", seed, kinds), strict=False):
        found.setdefault(task.prompt, task)
        if len(found) == count:
            return list(found.values())
    if count == 0:
        return []
    raise ValueError(
        f"only {len(found)} different held-out prompts found for {tuple(kinds)}; ask for fewer than {count}"
    )


# --- the tokenizer -------------------------------------------------------------------------------------

CHARACTERS = string.ascii_lowercase + string.digits + " " + "{}[]\":,.?!+-*/=<>()'_;"
PAD, UNKNOWN, USER, ASSISTANT, END = "<|pad|>", "<|unk|>", "<|user|>", "<|assistant|>", "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('the tiny world knows the roles user and assistant, not ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, and a token for each role's turn and for its end (which is the eos token).

    There is no bos token. The generation prompt is one special token, so the tokens of a rendered prompt are
    always a prefix of the tokens of prompt and completion.
    """
    vocabulary = [PAD, UNKNOWN, USER, ASSISTANT, END, *CHARACTERS]
    backend = Tokenizer(
        models.WordLevel({token: index for index, token in enumerate(vocabulary)}, unk_token=UNKNOWN)
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )
