"""Hidden states to per-token log-probabilities; the logits are never whole."""

from __future__ import annotations

from holdfast.ops.linear_logprob import linear_logprob
from holdfast.ops.reference import linear_logprob_reference

__all__ = ["linear_logprob", "linear_logprob_reference"]
