"""Scores and intervals by hand; sampling against a step-by-step decoder."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from scipy.stats import binom, chisquare, norm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.demo.scoring import (
    bootstrap_interval,
    proportion_interval,
    sample_completions,
    score_completions,
)
from holdfast.demo.world import Task, held_out, right_completion, tiny_tokenizer, wrong_completion
from holdfast.models.tiny import tiny_model

NUMBER = Task("arithmetic", "what is 3 + 4?", 7)
TRUTH = Task("comparing", "is 2 > 1?", True)
TEXT = Task("reversing", "reverse ab", "ba")
DIGITS = Task("sorting", "sort 3 1 2 up", [1, 2, 3])


@pytest.mark.parametrize(
    ("task", "completion", "exact", "valid"),
    [
        (NUMBER, '{"answer": 7}', True, True),
        (NUMBER, '{"answer":7}', True, True),  # JSON's spaces are free
        (NUMBER, '{"answer": 8}', False, True),
        (NUMBER, '{"answer": "7"}', False, False),
        (NUMBER, '{"answer": 7.0}', False, False),
        (NUMBER, '{"answer": true}', False, False),
        (NUMBER, '{"answer": null}', False, False),
        (NUMBER, '{"answer": NaN}', False, False),
        (NUMBER, '{"answer": 7', False, False),
        (NUMBER, '{"answer": 7}}', False, False),
        (NUMBER, '{"answer": 7}<|user|>', False, False),
        (NUMBER, 'The answer: {"answer": 7}', False, False),
        (NUMBER, '{"answer": 7, "answer": 7}', False, False),
        (NUMBER, '{"answer": 7, "why": 1}', False, False),
        (NUMBER, '{"Answer": 7}', False, False),
        (NUMBER, '[["answer", 7]]', False, False),
        (NUMBER, "7", False, False),
        (NUMBER, "", False, False),
        (NUMBER, "[" * 100_000, False, False),
        (TRUTH, '{"answer": true}', True, True),
        (TRUTH, '{"answer": false}', False, True),
        (TRUTH, '{"answer": 1}', False, False),
        (TEXT, '{"answer": "ba"}', True, True),
        (TEXT, '{"answer": "ab"}', False, True),
        (TEXT, '{"answer": ba}', False, False),
        (DIGITS, '{"answer": [1, 2, 3]}', True, True),
        (DIGITS, '{"answer": [1, 2]}', False, True),
        (DIGITS, '{"answer": [true, 2, 3]}', False, False),
        (DIGITS, '{"answer": "1, 2, 3"}', False, False),
    ],
)
def test_scores_by_hand(task: Task, completion: str, exact: bool, valid: bool) -> None:
    assert score_completions([task], [completion]) == ([exact], [valid])


def test_scores_agree_with_the_world() -> None:
    tasks = held_out(100, seed=5)
    rng = random.Random(0)
    assert score_completions(tasks, [right_completion(task) for task in tasks]) == (
        [True] * 100,
        [True] * 100,
    )
    wrong = [wrong_completion(task, rng) for task in tasks]
    assert score_completions(tasks, wrong) == ([False] * 100, [True] * 100)


def test_as_many_completions_as_tasks() -> None:
    with pytest.raises(ValueError, match="zip"):
        score_completions([NUMBER, TRUTH], ["{}"])


# --- intervals -----------------------------------------------------------------------------------------


def test_wilson_by_hand() -> None:
    # Wilson (1927): (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n), here with p = 0.6, n = 10.
    z = norm.ppf(0.975)
    centre, half = 0.6 + z**2 / 20, z * math.sqrt(0.024 + z**2 / 400)
    expected = (0.6, (centre - half) / (1 + z**2 / 10), (centre + half) / (1 + z**2 / 10))
    assert proportion_interval([True] * 6 + [False] * 4) == pytest.approx(expected)
    value, low, high = proportion_interval([True] * 300)
    assert (value, high) == (1.0, 1.0)
    assert low == pytest.approx(300 / (300 + z**2))  # 0.987


def test_bootstrap_covers_like_the_exact_distribution() -> None:
    # Resampled means of 60 ones in 100 are binomial(100, 0.6) / 100, whose quantiles are known.
    value, low, high = bootstrap_interval([1.0] * 60 + [0.0] * 40, resamples=20_000)
    assert value == pytest.approx(0.6)
    assert low == pytest.approx(binom.ppf(0.025, 100, 0.6) / 100, abs=0.0101)
    assert high == pytest.approx(binom.ppf(0.975, 100, 0.6) / 100, abs=0.0101)


def test_bootstrap_narrows_with_the_level_and_is_seeded() -> None:
    values = np.random.default_rng(0).normal(size=50).tolist()
    wide, narrow = bootstrap_interval(values, level=0.95), bootstrap_interval(values, level=0.5)
    assert wide.low < narrow.low < wide.value < narrow.high < wide.high
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    assert bootstrap_interval([0.25, 0.25]) == (0.25, 0.25, 0.25)


def test_nothing_scored_is_an_error() -> None:
    with pytest.raises(ValueError, match="no prompt"):
        proportion_interval([])
    with pytest.raises(ValueError, match="no prompt"):
        bootstrap_interval([])


# --- sampling ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Random, but far from uniform, so that an argmax is never decided by rounding."""
    return tiny_model("qwen3", len(tokenizer), hidden_size=32, seed=3, initializer_range=0.5).eval()


PROMPTS = ["reverse abc", "is 1 > 2?", "sort 3 1 2 up", "count a in bab", "k of a=1 k=23"]


def greedy_by_steps(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, steps: int
) -> str:
    """Greedy decoding as its definition reads: no cache, no padding, one prompt."""
    tokens = tokenizer(f"<|user|>{prompt}<|end|><|assistant|>")["input_ids"]
    start = len(tokens)
    for _ in range(steps):
        with torch.no_grad():
            best = int(model(torch.tensor([tokens])).logits[0, -1].argmax())
        if best == tokenizer.eos_token_id:
            break
        tokens = [*tokens, best]
    return tokenizer.decode(tokens[start:])


def test_greedy_is_the_argmax_at_every_step(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    expected = [greedy_by_steps(model, tokenizer, prompt, 10) for prompt in PROMPTS]
    assert len(set(expected)) > 1
    for batch_size in (1, 2, 5):
        written = sample_completions(
            model, tokenizer, PROMPTS, max_new_tokens=10, temperature=0, batch_size=batch_size
        )
        assert written == expected


def test_an_answer_ends_at_the_end_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """A head that always prefers the end token, then one that always prefers a role token."""
    model = tiny_model("llama", len(tokenizer), hidden_size=32).eval()
    model.model.norm.register_forward_hook(lambda module, inputs, output: torch.ones_like(output))
    for token, expected in [("<|end|>", ""), ("<|user|>", "<|user|>" * 4)]:
        with torch.no_grad():
            model.lm_head.weight.zero_()
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(token)] = 1.0
        for temperature in (0.0, 0.1):
            written = sample_completions(
                model, tokenizer, PROMPTS[:2], max_new_tokens=4, temperature=temperature
            )
            assert written == [expected] * 2


def test_sampling_is_seeded_and_leaves_the_random_state(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    before = torch.get_rng_state()
    one, same, other = (
        sample_completions(model, tokenizer, PROMPTS, max_new_tokens=8, temperature=2.0, seed=seed)
        for seed in (1, 1, 2)
    )
    assert one == same != other
    assert torch.equal(torch.get_rng_state(), before)


def test_sampling_follows_the_models_distribution(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """First tokens of 4,000 draws against the softmax by chi-square: no top-k or top-p may cut the tail."""
    draws = 4000
    tokens = tokenizer("<|user|>reverse abc<|end|><|assistant|>", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        probabilities = (model(tokens).logits[0, -1] / 3.0).softmax(-1)
    written = sample_completions(
        model, tokenizer, ["reverse abc"] * draws, max_new_tokens=1, temperature=3.0, batch_size=draws
    )
    texts = ["" if i == tokenizer.eos_token_id else tokenizer.decode([i]) for i in range(len(tokenizer))]
    observed = np.array([written.count(text) for text in texts])
    expected = draws * probabilities.double().numpy()
    rare = expected < 10  # too few for the statistic one by one: counted together
    assert observed.sum() == draws
    assert expected[rare].sum() > 20
    observed, expected = (np.append(counts[~rare], counts[rare].sum()) for counts in (observed, expected))
    assert chisquare(observed, expected * draws / expected.sum()).pvalue > 0.01


def test_training_mode_is_restored(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model("qwen3", len(tokenizer), hidden_size=32)
    assert model.training
    sample_completions(model, tokenizer, PROMPTS[:1], max_new_tokens=1)
    assert model.training
