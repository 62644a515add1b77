"""Small benchmarks of the official layouts, with texts of their own, and judges that follow a script."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CATEGORIES = {1: "writing", 2: "math", 3: "writing", 4: "coding"}
ARENA_IDS = [f"q{number}" for number in range(6)]
SINGLE = ("single-v1", "single-math-v1")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def talk_assets(folder: Path, *, prompts: bool = True) -> Path:
    """A benchmark of MT-Bench's layout: four questions, two of them with references."""
    write_rows(
        folder / "question.jsonl",
        (
            {"question_id": number, "category": category, "turns": [f"first {number}?", f"second {number}?"]}
            for number, category in CATEGORIES.items()
        ),
    )
    write_rows(
        folder / "reference_answer" / "gpt-4.jsonl",
        (talk_answer(number, "gpt-4", "right") for number in (2, 4)),
    )
    if prompts:
        talk = "{question_1} {answer_1} {question_2} {answer_2}"
        templates = {
            "single-v1": "Q {question} A {answer}",
            "single-math-v1": "Q {question} R {ref_answer_1} A {answer}",
            "single-v1-multi-turn": talk,
            "single-math-v1-multi-turn": "R {ref_answer_1} {ref_answer_2} " + talk,
        }
        write_rows(
            folder / "judge_prompts.jsonl",
            (
                {"name": name, "type": "single", "system_prompt": f"as {name}", "prompt_template": template}
                for name, template in templates.items()
            ),
        )
    return folder


def talk_answer(number: int, model: str, word: str = "answer") -> dict[str, Any]:
    turns = [f"{word} {number}.1 by {model}", f"{word} {number}.2 by {model}"]
    return {
        "question_id": number,
        "answer_id": "x",
        "model_id": model,
        "choices": [{"index": 0, "turns": turns}],
        "tstamp": 1.0,
    }


def talk_answers(path: Path, numbers: Iterable[int] = CATEGORIES) -> Path:
    return write_rows(path, (talk_answer(number, path.stem) for number in numbers))


def arena_assets(folder: Path, *, config: bool = True) -> Path:
    """A benchmark of Arena-Hard v0.1's layout: six questions."""
    write_rows(
        folder / "question.jsonl",
        (
            {"uid": name, "category": "arena-hard-v0.1", "cluster": "c", "prompt": f"do {name}"}
            for name in ARENA_IDS
        ),
    )
    if config:
        text = (
            "judge_model: gpt-4-1106-preview\ntemperature: 0\nmax_tokens: 4096\nnumber_of_judgment_attempts: 2\n"
            'system_prompt: "judge them"\nprompt_template: ["P {question_1} A {answer_1} B {answer_2}"]\n'
        )
        (folder / "judge_config.yaml").write_text(text, encoding="utf-8")
    return folder


def arena_answer(name: str, model: str) -> dict[str, Any]:
    return {
        "uid": name,
        "ans_id": "x",
        "model": model,
        "messages": [
            {"role": "user", "content": f"do {name}"},
            {"role": "assistant", "content": {"answer": f"{name} by {model}"}},
        ],
        "tstamp": 1.0,
        "metadata": {"token_len": 10},
    }


def arena_answers(path: Path, names: Iterable[str] = ARENA_IDS) -> Path:
    return write_rows(path, (arena_answer(name, path.stem) for name in names))
