"""The model's capability as training goes: the running mean probability of target tokens, by what they ask of it.

Tokens that carry information say what the model knows. Those that the format gives away are near 1 for any model that
has met the format, and would drown the others; but where they are not, the answers may be known and their format is
not, and an objective that trusts the model's prior would never learn it. So the capability is the lesser of two means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from holdfast.data.collate import Batch
from holdfast.data.information import InformativeTokens
from holdfast.training.metrics import wide


class CapabilityTracker:
    """A mean over global batches, in which one counts half as much as one `half_life` batches later.

    Counted by tokens: every target token of its kind (see `InformativeTokens`) in all micro-batches of a global batch
    on all processes has the same weight, so the mean does not depend on how a global batch is cut. It moves only when a
    global batch is closed. Nothing is read from the device.

    Args:
        half_life: in global batches; 0: the last one alone.
        start: the capability before the first global batch.
    """

    def __init__(
        self, information: InformativeTokens, half_life: float, start: float, device: torch.device
    ) -> None:
        self._information = information.to(device)
        self._decay = 0.5 ** (1 / half_life) if half_life else 0.0
        # of p, and of tokens: those that carry information, and those given away; older batches count less
        self._sums = wide(torch.zeros(2, 2, device=device))
        self._start = torch.tensor(start, dtype=torch.float64).to(self._sums)
        self._open = torch.zeros_like(self._sums)  # of the global batch at work, on this process

    @property
    def capability(self) -> Tensor:
        """() in [0, 1]; where no token carried information so far, the start."""
        total, count = self._sums.unbind(1)
        mean = torch.where(count > 0, total / count.clamp(min=torch.finfo(count.dtype).tiny), 1.0)
        return torch.where(count[0] > 0, mean.min(), self._start)

    def add(self, batch: Batch, logps: Tensor) -> None:
        """Add a micro-batch: (scored,) log-probs of its target tokens, nats."""
        carried = self._information(batch)
        p = wide(logps.detach()).exp()
        kinds = torch.stack([carried, ~carried])
        self._open += torch.stack([torch.where(kinds, p, 0.0).sum(1), wide(kinds.sum(1))], dim=1)

    def forget(self) -> None:
        """Drop the global batch at work: it is done again."""
        self._open = torch.zeros_like(self._sums)

    def close(self, accelerator: Any) -> None:
        """A global batch is complete: take it in. One that is not finite is left out."""
        found = accelerator.reduce(self._open, reduction="sum")
        self._sums = torch.where(found.isfinite().all(), self._decay * self._sums + found, self._sums)
        self.forget()

    def state_dict(self) -> dict[str, Any]:
        """What the next global batch's capability follows from: plain numbers, the same on every process."""
        return {"sums": self._sums.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `state_dict` took it, between two global batches."""
        self._sums = torch.tensor(state["sums"], dtype=torch.float64).to(self._sums)
        self.forget()
