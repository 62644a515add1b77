"""The probability of every target token of tokenized rows, under a model as it stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from holdfast.data.collate import SFTCollator
from holdfast.data.packing import join
from holdfast.errors import ConfigError, ModelError
from holdfast.models.token_logprobs import (
    causal_lm_of,
    check_logprob_forward,
    install_logprob_forward,
    token_logprobs,
)

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ScoredTokens:
    """Every target token of some rows, row after row in the data set's order.

    Attributes:
        logps: (tokens,) log-probs in nats, at most 0.
        targets: (tokens,) their ids.
        row_of: (tokens,) the number of each token's row, rising.
        rows: how many rows there are; each has a target token.
        prompt_of: (rows,) the number of each row's prompt; None: each row has its own.
    """

    logps: Floats
    targets: Integers
    row_of: Integers
    rows: int
    prompt_of: Integers | None = None

    @property
    def probabilities(self) -> Floats:
        """(tokens,)."""
        found: Floats = np.exp(self.logps)
        return found


@torch.no_grad()
def score_tokens(
    model: nn.Module, dataset: Any, pad_token_id: int, *, batch_size: int = 8, progress: bool = False
) -> ScoredTokens:
    """Log-probs of the target tokens of `dataset`, in evaluation mode, in the model's own precision.

    Rows of like length share a batch, the longest first: what does not fit shows at once. Log-probs come from the
    lean forward, so no logits are held for a whole batch.

    Args:
        dataset: columns `input_ids`, `completion_mask`, `row_index` (what `prepare_sft` and `take_in` make).
        batch_size: rows a batch; changes nothing but rounding.

    Raises:
        ConfigError: a batch size below 1.
        ModelError: the forward does not give the model's own logits; a token beyond the vocabulary; a row too long for
            the model's positions; a log-prob that is NaN.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
    install_logprob_forward(model)
    columns = dataset.with_format("numpy")
    masks = columns["completion_mask"][:]
    lengths = np.array([len(mask) for mask in masks])
    counts = np.array([int(np.count_nonzero(mask)) for mask in masks])
    starts = np.r_[0, np.cumsum(counts)]
    _require_fit(model, columns, lengths)
    device = causal_lm_of(model).get_input_embeddings().weight.device
    order = np.argsort(-lengths, kind="stable")
    collate = SFTCollator(pad_token_id)
    logps, targets = np.empty(starts[-1]), np.empty(starts[-1], np.int64)
    was_training = model.training
    model.eval()
    try:
        bar = tqdm(total=len(order), desc="probing", unit="row", disable=not progress, leave=False)
        with bar:
            for first in range(0, len(order), batch_size):
                rows = order[first : first + batch_size]
                batch = collate([dataset[int(row)] for row in rows])
                sent = {
                    key: value.to(device) if isinstance(value, Tensor) else value
                    for key, value in batch.items()
                }
                places = join([np.arange(starts[row], starts[row + 1]) for row in rows])
                own = token_logprobs(model, sent).cpu().double().numpy()
                _require_numbers(own, np.repeat(rows, counts[rows]))
                if not first:  # behind the first NaN, which it would call a difference in the logits
                    check_logprob_forward(model, pad_token_id)
                logps[places] = own
                targets[places] = batch["target_ids"].numpy()
                bar.update(len(rows))
    finally:
        model.train(was_training)
    row_of = np.repeat(np.arange(len(counts)), counts)
    return ScoredTokens(np.minimum(logps, 0.0), targets, row_of, len(counts))


def _require_numbers(logps: Floats, row_of: Integers) -> None:
    damaged = np.isnan(logps)
    if damaged.any():
        raise ModelError(
            f"the model gives NaN for a token of row {row_of[damaged][0]}: its weights are damaged, or their dtype is "
            "too narrow (try float32)"
        )


def _require_fit(model: nn.Module, columns: Any, lengths: Integers) -> None:
    """Refuse rows that the model cannot read, before it fails on them."""
    causal_lm = causal_lm_of(model)
    vocabulary = causal_lm.get_input_embeddings().weight.shape[0]
    largest = max(int(ids.max()) for ids in columns["input_ids"][:])
    if largest >= vocabulary:
        raise ModelError(
            f"the tokenizer gave token {largest}, but the model embeds {vocabulary} tokens: take the model's own "
            "tokenizer"
        )
    positions = getattr(causal_lm.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and lengths.max() > positions:
        raise ModelError(
            f"a row has {lengths.max()} tokens, but the model has {positions} positions: set max_length to "
            f"{positions} or less"
        )
