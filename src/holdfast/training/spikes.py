"""Values far beyond those before them: a batch that would throw the model away, seen before its optimizer step.

OLMo-core's stability monitor counts values more than six standard deviations over the mean of the last 128
(`train/callbacks/stability_monitor.py`). That is a count for a chart; this is to warn, and to stop a run. So the centre
and the deviation are the median and the MAD, which a few outliers do not move (Leys et al. 2013, "Detecting outliers",
J. Exp. Soc. Psychol. 49), the threshold is wider, and a deviation is never taken for smaller than what ordinary runs
show from one batch to the next.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

# Values before the first is judged.
WARM_UP = 5
# Of which the median is taken anew at every step.
LONGEST_WINDOW = 10_000
# A normal distribution's standard deviation, in units of its median absolute deviation.
DEVIATIONS_PER_MAD = 1.4826


@dataclass(frozen=True)
class Spike:
    """A value beyond the limit.

    Attributes:
        name: what was measured.
        value: what it was.
        usual: the median of the values before.
        limit: what would have passed.
    """

    name: str
    value: float
    usual: float
    limit: float

    def __str__(self) -> str:
        return f"the {self.name} is {self.value:.4g}, where {self.usual:.4g} is usual and {self.limit:.4g} would pass"


@dataclass
class Series:
    """The last values of one quantity, and what of it would be a spike.

    A spike is greater than the median of the window by more than `threshold` deviations, where a deviation is the
    greatest of: 1.4826 times the window's median absolute deviation; a share of the median's size; a share of the way
    from the median to the greatest value seen; and `unit`.

    A spike enters the window as the limit it passed. So one does not hide the next, and a lasting change of level is
    reported a few times and then accepted.

    Attributes:
        name: for messages.
        threshold: deviations.
        window: values looked back at.
        of_median, of_range: those shares.
        unit: the least deviation that matters, in the quantity's own unit.
        whole_run: whether "greatest value seen" looks back on the whole run, not on the window alone; for a quantity
            that is never negative.
    """

    name: str
    threshold: float
    window: int
    of_median: float
    of_range: float
    unit: float = 0.0
    whole_run: bool = False
    values: deque[float] = field(init=False)
    greatest: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.values = deque(maxlen=self.window)

    def observe(self, value: float) -> Spike | None:
        """Judge a finite value by those before it, and take it in."""
        spike = None
        if len(self.values) >= min(WARM_UP, self.window):
            usual = median(self.values)
            limit = usual + self.threshold * self._deviation(usual)
            if value > limit:
                spike = Spike(self.name, value, usual, limit)
                value = limit
        self.values.append(value)
        self.greatest = max(self.greatest, value)
        return spike

    def _deviation(self, usual: float) -> float:
        greatest = self.greatest if self.whole_run else max(self.values)
        return max(
            DEVIATIONS_PER_MAD * median(abs(value - usual) for value in self.values),
            self.of_median * abs(usual),
            self.of_range * (greatest - usual),
            self.unit,
        )


class SpikeDetector:
    """Judges each optimizer step's loss and gradient norm.

    The loss is in nats, or something like it, for every objective: a quarter of a nat between two batches is no news,
    even where both are close to zero. A gradient norm has no unit of its own, and triples within a few steps of many a
    good run; but one that the run has met before is no news, whatever the last steps had. (When all but a few pairs
    are told apart, most gradients are tiny, and a few are as they were at the start.)

    Args:
        threshold: robust standard deviations over the median.
        window: steps looked back at.
    """

    def __init__(self, threshold: float, window: int) -> None:
        self.series = {
            "loss": Series("loss", threshold, window, of_median=0.1, of_range=0.25, unit=0.25),
            "grad_norm": Series(
                "gradient norm", threshold, window, of_median=0.5, of_range=0.5, whole_run=True
            ),
        }

    def observe(self, loss: float, grad_norm: float) -> list[Spike]:
        """The spikes of a step: none, one or two. What is not finite, and a norm of zero, is passed over."""
        # A norm of zero is no gradient at all, and says nothing of gradients' size.
        given = {"loss": loss, "grad_norm": grad_norm or math.nan}
        found = [self.series[name].observe(value) for name, value in given.items() if math.isfinite(value)]
        return [spike for spike in found if spike is not None]

    def state_dict(self) -> dict[str, Any]:
        """What was seen, as plain numbers."""
        return {
            name: {"values": list(series.values), "greatest": series.greatest}
            for name, series in self.series.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken. A window of another length keeps the last values that fit."""
        for name, series in self.series.items():
            values: Iterable[float] = state[name]["values"]
            series.values = deque(values, maxlen=series.window)
            series.greatest = state[name]["greatest"]
