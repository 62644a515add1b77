"""The rows of the continuum: one tiny model meets tasks that it knows, half knows, and has never seen.

Three places on the continuum of arXiv 2510.00526. *Strong*: families the model answers nearly always rightly, shown
with wrong demonstrations among the right ones. *Weak*: a letter cipher it never met, shown rightly. *Intermediate*: the
cipher after a short taste of it, or known and unknown families side by side. As in `world`, everything is a function of
its arguments, and no prompt is on two sides.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from holdfast.demo.world import (
    FAMILIES,
    Answer,
    Side,
    Task,
    render_answer,
    right_completion,
    side,
    wrong_completion,
)

KNOWN_KINDS = ("reversing", "sorting", "comparing")
CIPHERING = "ciphering"
WrongKind = Literal["one", "many"]


def _cipher_alphabet() -> dict[str, str]:
    letters = list(string.ascii_lowercase)
    random.Random("the continuum's cipher").shuffle(letters)
    return dict(zip(string.ascii_lowercase, letters, strict=True))


CIPHER = _cipher_alphabet()


def ciphering(rng: random.Random) -> Task:
    """A string of three to six letters, each replaced by its partner in one fixed alphabet."""
    text = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 6)))
    return Task(CIPHERING, f"cipher {text}", "".join(CIPHER[letter] for letter in text))


@dataclass(frozen=True)
class Setting:
    """One place on the continuum.

    Attributes:
        kinds: families of tasks, drawn evenly.
        wrong_share: probability that a demonstration of a known family, or of every family where none is known, is
            wrong.
        wrong_kind: `many`: the answer is changed in one place, at random; `one`: always the same way, so that a model
            can learn to be wrong.
        taste: supervised steps on the setting's own right answers that the model has had before.
    """

    kinds: tuple[str, ...]
    wrong_share: float = 0.0
    wrong_kind: WrongKind = "many"
    taste: int = 0


def setting_task(rng: random.Random, kinds: tuple[str, ...]) -> Task:
    """One task of a family drawn evenly from `kinds`."""
    kind = rng.choice(kinds)
    return ciphering(rng) if kind == CIPHERING else FAMILIES[kind](rng)


def tasks(on: Side, seed: str, kinds: tuple[str, ...]) -> Iterator[Task]:
    """Tasks whose prompts belong to one side, without end."""
    rng = random.Random(f"continuum:{on}:{seed}")
    while True:
        task = setting_task(rng, kinds)
        if side(task.prompt) == on:
            yield task


def demonstrations(setting: Setting, count: int, seed: str, *, clean: bool = False) -> list[dict[str, Any]]:
    """`count` rows of `prompt` and `completion`, some of them wrong as the setting says; `clean`: none."""
    rng = random.Random(f"continuum:demonstrations:{seed}")
    noisy = [kind for kind in setting.kinds if kind in KNOWN_KINDS] or list(setting.kinds)
    rows = []
    for _, task in zip(range(count), tasks("sft", seed, setting.kinds), strict=False):
        wrong = task.kind in noisy and rng.random() < setting.wrong_share and not clean
        rows.append({"prompt": task.prompt, "completion": _completion(task, wrong, setting.wrong_kind, rng)})
    return rows


def judged_tasks(setting: Setting, count: int, seed: str) -> list[Task]:
    """`count` tasks with different prompts, none of which a demonstration can have."""
    found: dict[str, Task] = {}
    for task in tasks("held_out", seed, setting.kinds):
        found.setdefault(task.prompt, task)
        if len(found) == count:
            break
    return list(found.values())


def _completion(task: Task, wrong: bool, kind: WrongKind, rng: random.Random) -> str:
    if not wrong:
        return right_completion(task)
    return wrong_completion(task, rng) if kind == "many" else render_answer(always_wrong(task.answer))


def always_wrong(answer: Answer) -> Answer:
    """The one wrong answer: the next number, the other truth value, the last letter or digit moved on by one."""
    if isinstance(answer, bool):
        return not answer
    if isinstance(answer, int):
        return answer + 1
    if isinstance(answer, str):
        return answer[:-1] + chr(ord("a") + (ord(answer[-1]) - ord("a") + 1) % 26)
    return [*answer[:-1], (answer[-1] + 1) % 10]
