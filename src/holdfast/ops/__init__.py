"""What a step computes: log-probs whose logits are never whole, attention over shared prompts, lean layers' parts."""

from __future__ import annotations

from holdfast.ops.linear_logprob import linear_logprob
from holdfast.ops.reference import linear_logprob_reference

__all__ = ["linear_logprob", "linear_logprob_reference"]
