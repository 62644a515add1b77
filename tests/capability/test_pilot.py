"""The pilot: same start, same rows, judged on others; at both ends of the continuum it finds the better objective."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.capability.demonstrations import RowSettings, take_in_demonstrations
from holdfast.capability.pilot import CANDIDATES, LONGEST_ANSWER, candidates, pilot
from holdfast.capability.pilot_report import PilotReport, compare
from holdfast.data.intake import Intake
from holdfast.demo.world import sft_rows
from holdfast.errors import ConfigError, DataError
from holdfast.models.tiny import tiny_model
from tests.capability.conftest import cipher_rows

ENDS = {"nll": {"name": "nll"}, "p": {"name": "p"}}
QUICK: dict[str, Any] = {"use_cpu": True, "max_length": 128, "per_device_train_batch_size": 16}


def taken(rows: Any, tokenizer: PreTrainedTokenizerBase) -> Intake:
    return take_in_demonstrations(rows, tokenizer, RowSettings(max_length=128, num_proc=1))


def tiny(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return tiny_model(
        "qwen3",
        len(tokenizer),
        hidden_size=32,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def test_candidates_are_registered_objectives() -> None:
    assert {"nll", "f_alpha 0.3", "p", "threshold 0.2"} <= set(candidates())
    assert set(candidates()) <= set(CANDIDATES)


@pytest.mark.parametrize("adapter", [None, {"rank": 4, "alpha": 8, "train_head": False}])
def test_every_arm_starts_from_the_same_model_on_the_same_rows(
    adapter: dict[str, Any] | None, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Two names for one objective are one training: equal to the last digit, and paired differences are none."""
    model = tiny(tokenizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = pilot(
        model,
        tokenizer,
        taken(sft_rows(60, 0), tokenizer),
        steps=3,
        settings=QUICK | {"learning_rate": 1e-2},
        adapter=adapter,
        objectives={"nll": {"name": "nll"}, "again": {"name": "nll"}, "p": {"name": "p"}},
        samples=1,
    )
    first, again, p = (found.arm(name) for name in ("nll", "again", "p"))
    assert again.scores == first.scores
    assert again.final_loss == first.final_loss
    assert {(own.low, own.high) for own in again.over_nll.values()} == {(0.0, 0.0)}
    assert p.scores["likelihood"] != first.scores["likelihood"]
    assert found.arms[0].name == "start"
    gained = found.arms[0].behind_best["likelihood"].low
    assert gained is not None
    assert gained > 0  # it was trained
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (found.steps, found.samples, found.settings["adapter"]) == (3, 1, adapter)


def test_rows_that_judge_are_not_trained_on(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = sft_rows(100, 0)
    found = pilot(
        tiny(tokenizer),
        tokenizer,
        taken(rows, tokenizer),
        steps=1,
        settings=QUICK,
        objectives=ENDS,
        held_out_rows=8,
        samples=1,
    )
    assert found.held_out_rows <= 8
    assert found.train_rows + found.held_out_rows <= len(rows)
    assert found.train_rows > 80


def test_copies_among_the_judging_rows_are_drawn_together(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[int]] = []

    def seen(*arguments: Any) -> Any:
        drawn.append(arguments[-1].tolist())
        return compare(*arguments)

    monkeypatch.setattr(sys.modules["holdfast.capability.pilot"], "compare", seen)
    rows = taken(sft_rows(30, 0) * 3, tokenizer)
    found = pilot(tiny(tokenizer), tokenizer, rows, steps=1, settings=QUICK, objectives=ENDS, samples=1)
    (prompt_of,) = drawn
    assert len(prompt_of) == found.held_out_rows
    assert all(prompt_of.count(number) % 3 == 0 for number in set(prompt_of))
    assert len(set(prompt_of)) > 1


def test_answers_too_long_to_match_are_not_generated(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most are long: nothing is generated, and likelihood alone is compared."""
    asked: list[int] = []

    def counted(model: Any, tokenizer: Any, questions: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(len(questions))
        assert all(question.answer_tokens <= LONGEST_ANSWER for question in questions)
        return np.ones(len(questions))

    # the package has a function of the module's name
    monkeypatch.setattr(sys.modules["holdfast.capability.pilot"], "exact_matches", counted)

    def piloted(short_share: float) -> PilotReport:
        rows = [
            row if n < 100 * short_share else row | {"completion": "a" * (LONGEST_ANSWER + 1)}
            for n, row in enumerate(sft_rows(100, 0))
        ]
        return pilot(
            tiny(tokenizer),
            tokenizer,
            taken(rows, tokenizer),
            steps=1,
            settings=QUICK,
            objectives=ENDS,
            held_out_rows=20,
            samples=1,
        )

    long = piloted(0.0)
    assert asked == []
    assert (long.asked_rows, long.longest_answer) == (0, LONGEST_ANSWER)
    assert {winner.criterion for winner in long.winners} == {"likelihood"}
    mixed = piloted(0.8)
    assert 0 < mixed.asked_rows < mixed.held_out_rows
    assert set(asked) == {mixed.asked_rows}
    assert mixed.arm("nll").scores["greedy"].value == 1  # of those asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"held_out_rows": 0}, "held_out_rows must be at least 1"),
        ({"objectives": {"nll": {"name": "nll"}}}, "two objectives"),
        ({"objectives": ENDS | {"start": {"name": "p"}}}, "none of them named 'start'"),
        ({"settings": QUICK | {"learning_rate": -1}}, "learning_rate must be at least 0"),
        ({"settings": QUICK | {"optim": "nonsense"}}, "pilot: .*nonsense"),
        ({"settings": QUICK | {"percentiles": "x"}}, "percentiles has no effect in a pilot"),
        ({"settings": QUICK | {"eval_strategy": "steps"}}, "eval_strategy has no effect in a pilot"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"objectives": {"a": {"name": "slime"}, "b": {"name": "nll"}}}, "takes a token objective"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    options: dict[str, Any], message: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    given = {"steps": 1, "settings": QUICK, "objectives": ENDS} | options
    with pytest.raises(ConfigError, match=message):
        pilot(tiny(tokenizer), tokenizer, taken(sft_rows(40, 0), tokenizer), **given)


def test_too_few_prompts_are_an_error(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"prompt": "a", "completion": f"{n}"} for n in range(20)]
    with pytest.raises(DataError, match="can be held out by prompt"):
        pilot(tiny(tokenizer), tokenizer, taken(rows, tokenizer), steps=1, settings=QUICK, objectives=ENDS)


def at_an_end(
    rows: list[dict[str, Any]], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **settings: Any
) -> PilotReport:
    return pilot(
        model,
        tokenizer,
        taken(rows, tokenizer),
        steps=100,
        settings=QUICK | settings,
        objectives=ENDS,
        held_out_rows=100,
        samples=2,
    )


@pytest.mark.soak
def test_at_the_weak_end_nll_wins(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    found = at_an_end(cipher_rows(1600, letters=2), model, tokenizer, learning_rate=1e-3)
    winner = found.winner("answers")
    assert winner is not None
    assert (winner.best, winner.settled) == ("nll", True)
    learned = found.arm("p").scores["answers"].value
    assert learned is not None
    assert learned < 0.05  # 1 − p learns next to nothing here


@pytest.mark.soak
def test_at_the_strong_end_with_noise_prior_leaning_wins(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Two in five answers belong to other questions."""
    rows, rng = sft_rows(1600, seed=9, wrong_share=0.0), random.Random(0)
    answers = [row["completion"] for row in rows]
    noisy = [row | {"completion": rng.choice(answers)} if rng.random() < 0.4 else row for row in rows]
    found = at_an_end(noisy, model, tokenizer, learning_rate=2e-4)
    winner = found.winner("sampled")
    assert winner is not None
    assert (winner.best, winner.settled) == ("p", True)
