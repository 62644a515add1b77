"""Answers to tokenized prompts: which text counts, and that decoding is what it says."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.capability.answers import Question, answer_text, exact_matches, questions
from holdfast.capability.demonstrations import RowSettings, take_in_demonstrations
from holdfast.demo.world import sft_rows
from tests.capability.conftest import tokenized


def encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def test_the_text_ends_at_the_first_end_token(tokenizer: PreTrainedTokenizerBase) -> None:
    end = int(tokenizer.eos_token_id)
    ids = [*encoded(tokenizer, " a b "), end, *encoded(tokenizer, "c")]
    assert answer_text(tokenizer, ids, {end}) == "a b"
    assert answer_text(tokenizer, ids[:4], {end}) == "a b"
    assert "<|user|>" in answer_text(tokenizer, encoded(tokenizer, "a<|user|>b"), {end})


def test_the_last_trained_turn_is_asked_for(tokenizer: PreTrainedTokenizerBase) -> None:
    end = int(tokenizer.eos_token_id)
    before, answer = encoded(tokenizer, "q"), [*encoded(tokenizer, "yes"), end]
    dataset = tokenized([(before + answer + before, answer)])
    mask = [False, True, True, True, True, False, True, True, True, True]
    dataset = dataset.remove_columns("completion_mask").add_column("completion_mask", [mask])
    assert questions(dataset, tokenizer, {end}) == [Question(before + answer + before, "yes", 4)]


@pytest.fixture
def asked(tokenizer: PreTrainedTokenizerBase) -> list[Question]:
    rows = sft_rows(24, seed=5, wrong_share=0.0)
    intake = take_in_demonstrations(rows, tokenizer, RowSettings(max_length=128, num_proc=1))
    found = questions(intake.rows.tokens, tokenizer, {int(tokenizer.eos_token_id)})
    assert [question.answer for question in found] == [row["completion"] for row in rows]
    return found


def test_a_trained_model_answers_and_the_batch_does_not_matter(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: list[Question]
) -> None:
    ends = {int(tokenizer.eos_token_id)}
    greedy = exact_matches(model, tokenizer, asked, ends, temperature=0.0, batch_size=24)
    assert greedy.mean() > 0.7
    alone = exact_matches(model, tokenizer, asked, ends, temperature=0.0, batch_size=5)
    assert (greedy == alone).all()
    wrong = [Question(one.prompt_ids, "no", one.answer_tokens) for one in asked]
    assert not exact_matches(model, tokenizer, wrong, ends, temperature=0.0).any()


def test_sampling_is_seeded_and_leaves_the_random_state(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: list[Question]
) -> None:
    ends = {int(tokenizer.eos_token_id)}
    torch.manual_seed(3)
    state = torch.get_rng_state()

    def sampled(seed: int) -> list[float]:
        options = {"temperature": 1.0, "samples": 3, "seed": seed}
        found: list[float] = exact_matches(model, tokenizer, asked, ends, **options).tolist()  # type: ignore[arg-type]
        return found

    first = sampled(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == sampled(0)
    assert first != sampled(1)
    assert {round(3 * share, 6) for share in first} <= {0, 1, 2, 3}
    assert any(0 < share < 1 for share in first)
