"""Log-probs of target tokens against the model's own logits in float64, however the rows are batched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from holdfast.capability.scoring import ScoredTokens, score_tokens
from holdfast.errors import ConfigError, ModelError
from holdfast.models.tiny import tiny_model
from tests.capability.conftest import tokenized

VOCAB = 61
LENGTHS = [(5, 3), (1, 1), (12, 9), (2, 14), (7, 7), (3, 1)]


def random_rows(lengths: list[tuple[int, int]] = LENGTHS) -> list[tuple[list[int], list[int]]]:
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(0, VOCAB, (count,), generator=generator).tolist()

    return [(tokens(prompt), tokens(completion)) for prompt, completion in lengths]


def independent(model: Any, rows: list[tuple[list[int], list[int]]]) -> np.ndarray:
    """Each row alone, through whole logits."""
    found = []
    for prompt, completion in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0].double()
        logps = logits[len(prompt) - 1 : -1].log_softmax(-1)
        found.append(logps.gather(-1, torch.tensor(completion)[:, None])[:, 0].numpy())
    return np.concatenate(found)


def scored(model: Any, rows: list[tuple[list[int], list[int]]], **options: Any) -> ScoredTokens:
    return score_tokens(model, tokenized(rows), 0, **options)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3"])
def test_they_are_those_of_the_whole_logits(family: str) -> None:
    """Gemma 2 caps its logits and its attention; both Gemmas have sliding windows."""
    model, rows = tiny_model(family, VOCAB, dtype=torch.float64), random_rows()
    truth = independent(model.eval(), rows)
    found = scored(model, rows)
    # the families' norms and Gemma 2's softmax compute in float32 whatever the dtype
    np.testing.assert_allclose(found.logps, truth, rtol=0, atol=1e-5)
    assert found.targets.tolist() == [token for _, completion in rows for token in completion]
    assert found.row_of.tolist() == [n for n, (_, completion) in enumerate(rows) for _ in completion]
    assert found.rows == len(rows)


def test_batches_and_padding_change_nothing() -> None:
    model, rows = tiny_model("qwen3", VOCAB, dtype=torch.float64), random_rows()
    alone = scored(model, rows, batch_size=1).logps
    for size in (2, 3, len(rows), 100):
        np.testing.assert_allclose(scored(model, rows, batch_size=size).logps, alone, rtol=0, atol=1e-6)


def test_turns_that_are_apart_are_scored_at_their_places() -> None:
    model, ids = tiny_model("llama", VOCAB), list(range(10, 20))
    mask = [False, False, True, False, False, True, True, False, True, False]
    dataset = tokenized([(ids, [])]).remove_columns("completion_mask").add_column("completion_mask", [mask])
    found = score_tokens(model, dataset, 0)
    with torch.no_grad():
        logps = model.eval()(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    places = [place for place, trained in enumerate(mask) if trained]
    assert found.targets.tolist() == [ids[place] for place in places]
    np.testing.assert_allclose(found.logps, [logps[place - 1, ids[place]] for place in places], atol=1e-5)


def test_it_reads_without_dropout_and_leaves_the_mode() -> None:
    model = tiny_model("llama", VOCAB, attention_dropout=0.5).train()
    rows = random_rows()
    first = scored(model, rows)
    assert model.training
    np.testing.assert_array_equal(first.logps, scored(model, rows).logps)
    np.testing.assert_allclose(first.logps, independent(model.eval(), rows), atol=1e-5)


def test_a_probability_is_never_above_one() -> None:
    found = scored(tiny_model("llama", 2, seed=1), [([0], [1, 1])])
    assert (found.probabilities <= 1).all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([([1], [VOCAB])], "embeds 61 tokens"),
        ([([1], [2] * 40)], "41 tokens, but the model has 32 positions"),
    ],
)
def test_rows_that_the_model_cannot_read_are_an_error(
    rows: list[tuple[list[int], list[int]]], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        scored(tiny_model("llama", VOCAB, max_position_embeddings=32), rows)


def test_damaged_weights_are_an_error() -> None:
    model = tiny_model("llama", VOCAB)
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = torch.nan
    with pytest.raises(ModelError, match="the model gives NaN for a token of row 1: its weights are damaged"):
        scored(model, [([1], [2, 3]), ([7], [2, 3])])
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="NaN for a token of row 0"):
        scored(model, [([1], [2, 3])])


def test_a_batch_holds_a_row() -> None:
    with pytest.raises(ConfigError, match="batch_size must be at least 1, not 0"):
        scored(tiny_model("llama", VOCAB), random_rows(), batch_size=0)
