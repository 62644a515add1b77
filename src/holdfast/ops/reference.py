"""The log-probability of each target under a linear LM head, in plain torch: definition and test oracle."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_logprob_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> Tensor:
    """`log_softmax(cap(logit_scale · (hidden @ weight.T + bias)))[targets]`.

    `cap(z) = softcap · tanh(z / softcap)`. Cohere multiplies its logits by `logit_scale`, Granite divides by
    `logits_scaling`, Gemma 2 caps at `final_logit_softcapping`: each in the head's own dtype, and the scale
    before the cap. The softmax is float32, or float64 for float64 inputs.

    Args:
        hidden: (tokens, hidden).
        weight: (vocab, hidden).
        targets: (tokens,) int64.
        bias: (vocab,).

    Returns:
        (tokens,) log-probabilities in nats. The (tokens, vocab) logits are formed, and kept for the backward.
    """
    logits = F.linear(hidden, weight, bias)
    if logit_scale != 1.0:
        logits = logits * logit_scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return F.log_softmax(logits, dim=-1, dtype=dtype).gather(1, targets.unsqueeze(1)).squeeze(1)
