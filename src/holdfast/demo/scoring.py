"""Judging the tiny world: sample answers, score them, and say how sure each number is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from scipy.stats import binomtest
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from holdfast.demo.world import Answer, Task
from holdfast.evaluation.statistics import bootstrap_mean

# --- sampling ------------------------------------------------------------------------------------------


def sample_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 32,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 256,
) -> list[str]:
    """One completion a prompt: what the model writes as the answering turn, up to its end token.

    Temperature 0 is greedy decoding, and then the result does not depend on `batch_size`. Above 0 the whole
    distribution is sampled (no top-k, no top-p) and the result depends on `seed`, `batch_size` and the order
    of the prompts alone; the global random state is left as it was. The text is exact: a special token in
    mid-answer stays visible, so that it counts as the broken format it is.
    """
    sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
    decoding = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        **sampling,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    rendered = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for prompt in prompts
    ]
    completions: list[str] = []
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(rendered), batch_size):
            # Left padding: every prompt of the batch ends where its answer begins.
            batch = tokenizer(
                rendered[start : start + batch_size],
                add_special_tokens=False,
                padding=True,
                padding_side="left",
                return_tensors="pt",
            ).to(model.device)
            written = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                generation_config=decoding,
            )
            answers = written[:, batch["input_ids"].shape[1] :].tolist()
            completions += [_decode_turn(tokenizer, tokens) for tokens in answers]
    model.train(was_training)
    return completions


def _decode_turn(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    """The text before the first end token (after it there is only padding)."""
    if tokenizer.eos_token_id in tokens:
        tokens = tokens[: tokens.index(tokenizer.eos_token_id)]
    return str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))


# --- scores --------------------------------------------------------------------------------------------


class Scores(NamedTuple):
    """One entry a task, in the order of the tasks."""

    exact: list[bool]  # the format is valid and the answer is right
    valid: list[bool]  # the format is valid, whatever the answer


def score_completions(tasks: Sequence[Task], completions: Sequence[str]) -> Scores:
    """Judge each completion against its task.

    The format is valid when the completion is one JSON object whose one key is `answer`, with a value of the
    type the task asks for: `"7"`, `7.0` and `true` are not valid where a whole number is asked for.
    """
    exact, valid = [], []
    for task, completion in zip(tasks, completions, strict=True):
        answer = _parse_answer(completion)
        valid.append(_same_type(answer, task.answer))
        exact.append(valid[-1] and answer == task.answer)
    return Scores(exact, valid)


def _parse_answer(completion: str) -> Any:
    """The value in `{"answer": value}`; None, which is no answer of the world, for any other text."""
    try:
        parsed = json.loads(completion, object_pairs_hook=_object_without_duplicates)
    except (ValueError, RecursionError):
        return None
    return parsed["answer"] if isinstance(parsed, dict) and list(parsed) == ["answer"] else None


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _same_type(answer: Any, right: Answer) -> bool:
    """Types compared exactly, since Python holds True equal to 1 and 7.0 to 7."""
    if isinstance(answer, list) and isinstance(right, list):
        return all(type(entry) is int for entry in answer)
    return type(answer) is type(right)


# --- intervals -----------------------------------------------------------------------------------------


class Interval(NamedTuple):
    """An estimate and the bounds of its confidence interval."""

    value: float
    low: float
    high: float


def proportion_interval(hits: Sequence[bool], level: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion, one yes or no a prompt.

    Wilson rather than the bootstrap because these rates sit near 1: when all of 300 formats are valid, a
    bootstrap of 300 ones claims [1, 1], while Wilson's lower bound is 0.987.
    """
    if not hits:
        raise ValueError("no prompt was scored, so there is no proportion")
    found = binomtest(sum(hits), len(hits)).proportion_ci(confidence_level=level, method="wilson")
    return Interval(sum(hits) / len(hits), float(found.low), float(found.high))


def bootstrap_interval(
    values: Sequence[float], seed: int = 0, level: float = 0.95, resamples: int = 2000
) -> Interval:
    """Percentile bootstrap for a mean, with prompts (one value each) as the units that are drawn again.

    For means of no known distribution, such as log-prob drift. Where all values are equal it has no width.
    """
    if not values:
        raise ValueError("no prompt was scored, so there is no mean")
    found = bootstrap_mean(values, seed=seed, level=level, resamples=resamples)
    known = found.interval
    return Interval(found.value, *((found.value, found.value) if known is None else (known.low, known.high)))
