"""Running sums of metrics that stay on the device until a logging step reads them, all at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

# A metric measured on a micro-batch: its sum, and how many things were summed.
Measured = Mapping[str, tuple[Tensor, Tensor | int]]


class MetricSums:
    """Adds up (sum, count) per metric; `flush` gives the means over every process and starts anew."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor | int] = {}

    def add(self, measured: Measured) -> None:
        """Add a micro-batch's sums. Never reads a value from the device, nor writes one to it."""
        for name, (total, count) in measured.items():
            self._sums[name] = wide(total.detach()) + self._sums.get(name, 0.0)
            count = wide(count.detach()) if isinstance(count, Tensor) else count
            self._counts[name] = count + self._counts.get(name, 0)

    def copy(self) -> MetricSums:
        """The sums as they are now."""
        other = MetricSums()
        other._sums, other._counts = dict(self._sums), dict(self._counts)
        return other

    def state_dict(self) -> dict[str, tuple[Tensor, Tensor | int]]:
        """(sum, count) of each metric, on the CPU."""
        return {name: (_on_cpu(self._sums[name]), _on_cpu(self._counts[name])) for name in self._sums}

    @classmethod
    def of(
        cls, states: Iterable[Mapping[str, tuple[Tensor, Tensor | int]]], device: torch.device
    ) -> MetricSums:
        """The sums that were saved, those of several processes added up."""
        result = cls()
        for state in states:
            result.add(
                {
                    name: (total.to(device), count.to(device) if isinstance(count, Tensor) else count)
                    for name, (total, count) in state.items()
                }
            )
        return result

    def flush(self, accelerator: Any) -> dict[str, tuple[float, float]]:
        """(sum, count) of each metric over all processes, read in one transfer; starts anew."""
        if not self._sums:
            return {}
        names = list(self._sums)
        sums = torch.stack([self._sums[name] for name in names])
        counts = torch.stack(
            [torch.as_tensor(self._counts[name], device=sums.device).to(sums) for name in names]
        )
        table = accelerator.reduce(torch.stack([sums, counts], dim=1), reduction="sum")
        self._sums, self._counts = {}, {}
        return dict(zip(names, map(tuple, table.tolist()), strict=True))


def means(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Each metric's mean. One that nothing was counted for is left out: missing is not zero."""
    return {name: total / count for name, (total, count) in sums.items() if count}


def wide(value: Tensor) -> Tensor:
    """In float64, in which counts are exact; float32 on the one device that has nothing wider."""
    return value.to(torch.float32 if value.device.type == "mps" else torch.float64)


def _on_cpu(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value
