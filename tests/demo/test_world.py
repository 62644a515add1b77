"""The tiny world: right answers are right, wrong ones wrong, and no prompt is on two sides."""

from __future__ import annotations

import json
import operator
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from holdfast.demo.world import (
    CHARACTERS,
    FAMILIES,
    TRAINED_KINDS,
    Task,
    held_out,
    make_task,
    preference_pairs,
    preference_rows,
    right_completion,
    sft_rows,
    side,
    tiny_tokenizer,
    wrong_completion,
)


def solve(prompt: str) -> object:
    """The answer to a prompt, worked out from its text alone and by other means than the world's."""
    words = prompt.rstrip("?").split()
    match words:
        case ["what", "is", left, sign, right]:
            return {"+": operator.add, "-": operator.sub, "*": operator.mul}[sign](int(left), int(right))
        case ["sort", "letters", letters]:
            return "".join(letter for letter in "abcdefghijklmnopqrstuvwxyz" if letter in letters)
        case ["sort", *digits, order]:
            rising = [digit for digit in range(10) if str(digit) in digits]
            return rising if order == "up" else rising[::-1]
        case ["reverse", text]:
            return "".join(text[-place] for place in range(1, len(text) + 1))
        case ["count", letter, "in", text]:
            return Counter(text)[letter]
        case ["is", left, ">", right]:
            return int(left) - int(right) > 0
        case ["larger", "of", left, "and", right]:
            return int(left) if int(left) > int(right) else int(right)
        case ["smaller", "of", left, "and", right]:
            return int(left) if int(left) < int(right) else int(right)
        case [key, "of", *_]:
            found = re.search(rf"(?<![a-z]){key}=(\d+)", prompt)
            assert found
            return int(found[1])
    raise AssertionError(f"no rule for {prompt!r}")


@pytest.mark.parametrize("kind", FAMILIES)
def test_answers_are_right_and_of_the_kind(kind: str) -> None:
    rng = random.Random(7)
    for _ in range(400):
        task = make_task(rng, [kind])
        assert task.kind == kind
        assert task.answer == solve(task.prompt), task
        assert type(task.answer) is type(solve(task.prompt)), task


def test_every_trained_kind_is_drawn() -> None:
    rng = random.Random(0)
    drawn = Counter(make_task(rng).kind for _ in range(600))
    assert set(drawn) == set(TRAINED_KINDS)
    assert min(drawn.values()) > 60  # 100 expected of each


def test_completions_by_hand() -> None:
    assert right_completion(Task("arithmetic", "what is 2 + 3?", 5)) == '{"answer": 5}'
    assert right_completion(Task("comparing", "is 1 > 2?", False)) == '{"answer": false}'
    assert right_completion(Task("reversing", "reverse abc", "cba")) == '{"answer": "cba"}'
    assert right_completion(Task("sorting", "sort 3 1 2 up", [1, 2, 3])) == '{"answer": [1, 2, 3]}'
    # There is only one wrong truth value, and zero must not go below zero.
    rng = random.Random(0)
    assert wrong_completion(Task("comparing", "is 1 > 2?", False), rng) == '{"answer": true}'
    wrong = {wrong_completion(Task("counting", "count a in bbb", 0), rng) for _ in range(100)}
    assert wrong == {'{"answer": 1}', '{"answer": 2}', '{"answer": 10}'}


@given(seed=st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_wrong_completions_are_wrong_and_well_formed(seed: int) -> None:
    rng = random.Random(seed)
    task = make_task(rng)
    wrong = json.loads(wrong_completion(task, rng))
    assert list(wrong) == ["answer"]
    assert wrong["answer"] != task.answer
    assert type(wrong["answer"]) is type(task.answer)
    if isinstance(task.answer, str | list):
        assert len(wrong["answer"]) == len(task.answer)


def test_rows_depend_on_the_seed_alone() -> None:
    for rows in (sft_rows, preference_rows, held_out):
        assert rows(20, seed=3) == rows(20, seed=3)
        assert rows(20, seed=3) != rows(20, seed=4)
        assert rows(10, seed=3) == rows(20, seed=3)[:10]  # a longer draw begins with the shorter


@given(seeds=st.tuples(*[st.integers(0, 10_000)] * 3))
@settings(max_examples=15, deadline=None)
def test_no_prompt_is_on_two_sides(seeds: tuple[int, int, int]) -> None:
    demonstrated = {row["prompt"] for row in sft_rows(150, seeds[0])}
    preferred = {row["prompt"] for row in preference_rows(150, seeds[1])}
    tested = [task.prompt for task in held_out(60, seeds[2])]
    assert len(set(tested)) == 60
    assert not demonstrated & preferred
    assert not demonstrated & set(tested)
    assert not preferred & set(tested)
    assert {side(prompt) for prompt in demonstrated} == {"sft"}
    assert {side(prompt) for prompt in preferred} == {"preference"}
    assert {side(prompt) for prompt in tested} == {"held_out"}


def test_sides_have_their_shares() -> None:
    rng = random.Random(0)
    prompts = {make_task(rng, ["reversing"]).prompt for _ in range(4000)}
    shares = {name: n / len(prompts) for name, n in Counter(side(prompt) for prompt in prompts).items()}
    assert shares == pytest.approx({"sft": 0.6, "preference": 0.3, "held_out": 0.1}, abs=0.03)


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (1.0, 1, 1), (0.35, 0.29, 0.41)])
def test_share_of_wrong_demonstrations(share: float, low: float, high: float) -> None:
    rows = sft_rows(600, seed=0, wrong_share=share)
    wrong = sum(json.loads(row["completion"])["answer"] != solve(row["prompt"]) for row in rows)
    assert low <= wrong / len(rows) <= high


def test_chosen_is_right_and_rejected_is_wrong() -> None:
    for row in preference_rows(200, seed=1):
        assert list(row) == ["prompt", "chosen", "rejected"]
        assert json.loads(row["chosen"])["answer"] == solve(row["prompt"])
        assert json.loads(row["rejected"])["answer"] != solve(row["prompt"])


def test_pairs_of_held_out_tasks_keep_their_order() -> None:
    tasks = held_out(10, seed=0)
    assert [row["prompt"] for row in preference_pairs(tasks, seed=0)] == [task.prompt for task in tasks]


def test_held_out_says_when_a_family_runs_dry() -> None:
    assert held_out(0, seed=0) == []
    with pytest.raises(ValueError, match="different held-out prompts found"):
        held_out(250, seed=0, kinds=["arithmetic"])  # a tenth of 2,000 prompts


# --- the tokenizer -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


def test_vocabulary(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(set(CHARACTERS)) == len(CHARACTERS)
    assert len(tokenizer) == len(CHARACTERS) + 5 == 64
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.bos_token is None


@given(seed=st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_world_text_encodes_exactly_and_shortly(tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
    rng = random.Random(seed)
    task = make_task(rng)
    for completion in (right_completion(task), wrong_completion(task, rng)):
        for text in (task.prompt, completion):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert len(ids) == len(text)
            assert tokenizer.decode(ids) == text
        # User, end and assistant tokens, and the end of the answer.
        assert len(task.prompt) + len(completion) + 4 <= 64


def test_template_by_hand(tokenizer: PreTrainedTokenizerBase) -> None:
    user = {"role": "user", "content": "reverse ab"}
    answer = {"role": "assistant", "content": '{"answer": "ba"}'}
    prompt = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|user|>reverse ab<|end|><|assistant|>"
    full = tokenizer.apply_chat_template([user, answer], tokenize=False)
    assert full == prompt + '{"answer": "ba"}<|end|>'
    prompt_ids, full_ids = tokenizer(prompt)["input_ids"], tokenizer(full)["input_ids"]
    assert full_ids[: len(prompt_ids)] == prompt_ids
    assert len(prompt_ids) == 10 + 3
    assert full_ids[-1] == tokenizer.eos_token_id


def test_template_refuses_other_roles(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(Exception, match="roles user and assistant, not system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "hi"}], tokenize=False)


def test_text_from_elsewhere_is_marked_unknown(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer("aÉ\n")["input_ids"][1:] == [tokenizer.unk_token_id] * 2


def test_tokenizer_survives_saving(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = '<|user|>b of a=1 b=2<|end|><|assistant|>{"answer": 2}<|end|>'
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.chat_template == tokenizer.chat_template
    assert (loaded.pad_token, loaded.eos_token) == (tokenizer.pad_token, tokenizer.eos_token)
