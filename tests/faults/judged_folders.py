"""Folders of judged runs, and what the original tools would have written into them.

The tools' rows are made of the calls of this package, whose prompts are theirs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast.evaluation.answers.generation import Request
from holdfast.evaluation.judged.arena_hard import Arena, load_arena, read_arena_answers
from holdfast.evaluation.judged.arena_judging import game_calls
from holdfast.evaluation.judged.arena_run import run_arena
from holdfast.evaluation.judged.judging import Judge
from holdfast.evaluation.judged.mt_bench import (
    JUDGE_SETTINGS,
    MTBench,
    load_mt_bench,
    read_talk_answers,
)
from holdfast.evaluation.judged.mt_bench_judging import rating_calls
from holdfast.evaluation.judged.mt_bench_run import run_mt_bench
from holdfast.evaluation.judged.run import Run
from holdfast.evaluation.results import Results
from tests.evaluation.scripted import Scripted
from tests.evaluation.small_benchmarks import (
    arena_answers,
    arena_assets,
    talk_answers,
    talk_assets,
)

TALK_FILE, ARENA_FILE = "model_judgment/gpt-4_single.jsonl", "model_judgment/j/m.jsonl"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rating(request: Request) -> str:
    """Another one for each turn of each question."""
    return f"It is so. [[{2 * int(request.key[0]) + int(request.key[1]) - 1}]]"


def label(request: Request) -> str:
    return "[[A>B]]" if (request.key[0] in ("q1", "q4")) == (request.key[1] == 1) else "[[B>>A]]"


def paid(said: Callable[[Request], str], log: Path) -> Scripted:
    """A judge whose every call leaves a line in `log`."""

    def script(request: Request) -> str:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # in one write, which no kill halves
        os.write(handle, json.dumps(request.key[:2]).encode() + b"\n")
        os.close(handle)
        return said(request)

    return Scripted(script)


class Talk:
    """MT-Bench in four questions, one folder of a run, and what the original tool would have written into it."""

    def __init__(self, folder: Path) -> None:
        self.assets, self.out = talk_assets(folder / "mt"), folder / "out"
        self.answers = talk_answers(folder / "m.jsonl")
        self.file = self.out / TALK_FILE

    def bench(self, limit: int | None = None) -> MTBench:
        return load_mt_bench(self.assets, limit=limit)

    def run(
        self, asks: Scripted | None, limit: int | None = None, judge: str = "gpt-4", **options: Any
    ) -> Results:
        name = options.pop("model", "m")
        answers = talk_answers(self.answers.with_name(f"{name}.jsonl"))
        bound = Judge(judge, options.pop("settings", JUDGE_SETTINGS), asks)
        options = {"answers": answers, "missing_limit": 1.0} | options
        return run_mt_bench(self.bench(limit), Run(self.out, name, bound, **options))

    def original(self, model: str = "m", judge: str = "gpt-4") -> list[dict[str, Any]]:
        """All rows of a model as FastChat writes them."""
        answers = read_talk_answers(talk_answers(self.answers.with_name(f"{model}.jsonl")), self.bench())
        return [
            {
                "question_id": call.question.id,
                "model": model,
                "judge": [judge, call.prompt.name],
                "user_prompt": call.messages[-1]["content"],
                "judgment": rating(call.request),
                "score": int(rating(call.request).split("[[")[1].rstrip("]")),
                "turn": call.turn,
                "tstamp": 5.0,
            }
            for call in rating_calls(self.bench(), answers, Judge(judge, JUDGE_SETTINGS))
        ]


class Games:
    """Arena-Hard in six questions, likewise."""

    def __init__(self, folder: Path) -> None:
        self.assets, self.out = arena_assets(folder / "arena"), folder / "out"
        self.answers = arena_answers(folder / "m.jsonl")
        self.baseline = arena_answers(folder / "gpt-4-0314.jsonl")
        self.file = self.out / ARENA_FILE

    def arena(self, limit: int | None = None) -> Arena:
        return load_arena(self.assets, limit=limit)

    def run(
        self, asks: Scripted | None, limit: int | None = None, judge: str = "j", **options: Any
    ) -> Results:
        arena = self.arena(limit)
        bound = Judge(judge, options.pop("settings", arena.settings), asks)
        options = {"answers": self.answers, "missing_limit": 1.0} | options
        return run_arena(arena, Run(self.out, "m", bound, **options), self.baseline)

    def original(self, *, old: bool = False) -> list[dict[str, Any]]:
        """All rows as Arena-Hard's tool writes them; `old`: before April 2025."""
        arena = self.arena()
        sides = [read_arena_answers(file, arena).texts for file in (self.baseline, self.answers)]
        rows: dict[str, dict[str, Any]] = {}
        for call in game_calls(arena, Judge("j", arena.settings), *sides):
            name, text, prompt = call.question.id, "\n" + label(call.request), call.messages[-1]["content"]
            head = {"question_id": name}
            if not old:
                head = {
                    "uid": name,
                    "category": call.question.category,
                    "judge": "j",
                    "baseline": "gpt-4-0314",
                }
            row = rows.setdefault(name, head | {"model": "m", "games": []})
            score = text.strip().strip("[]")
            row["games"].append(
                {"user_prompt": prompt, "judgment": text, "score": score}
                if old
                else {
                    "score": score,
                    "judgment": {"answer": text},
                    "prompt": call.messages,  # the system message too
                }
            )
        return list(rows.values())
