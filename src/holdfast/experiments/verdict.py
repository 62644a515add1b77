"""What a preference stage did to held-out pairs, measured before and after, with intervals."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.evaluation.statistics import paired_bootstrap
from holdfast.training.scoring import PairScores

# A smaller change of the chosen answers, in nats a token, is not worth a verdict, however sure it is.
NOTABLE = 0.005

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Change:
    """One quantity before and after, each the mean over held-out pairs.

    Attributes:
        low, high: 95 % percentile-bootstrap interval of the mean change, pairs resampled; None below 10 pairs.
    """

    name: str
    unit: str
    before: float
    after: float
    change: float
    low: float | None
    high: float | None
    pairs: int

    def sentence(self) -> str:
        """For people: the change, and whether its interval leaves out zero."""
        text = f"{self.name}: {self.before:.3f} -> {self.after:.3f} {self.unit} ({self.change:+.3f}"
        if self.low is None or self.high is None:
            return f"{text}; {self.pairs} held-out pairs, too few for an interval)"
        clear = "" if self.low > 0 or self.high < 0 else "; no clear change"
        return (
            f"{text}, 95 % interval {self.low:+.3f} to {self.high:+.3f}, {self.pairs} held-out pairs{clear})"
        )


def changes(before: PairScores, after: PairScores, seed: int = 0) -> list[Change]:
    """Chosen and rejected log-prob a token, how often the chosen one is likelier, and collapsed tokens."""

    def per_token(scores: PairScores, side: str) -> Array:
        total, tokens = getattr(scores, side), getattr(scores, f"{side}_tokens")
        return np.asarray(total / tokens)

    def accuracy(scores: PairScores) -> Array:
        return (per_token(scores, "chosen") > per_token(scores, "rejected")).astype(np.float64)

    def collapsed(scores: PairScores) -> Array:
        return np.asarray(scores.collapsed / scores.rejected_tokens)

    measures = [
        ("chosen log-prob", "nats/token", lambda s: per_token(s, "chosen")),
        ("rejected log-prob", "nats/token", lambda s: per_token(s, "rejected")),
        ("chosen likelier than rejected", "of pairs", accuracy),
        ("rejected tokens with p < 1e-4", "of tokens", collapsed),
    ]
    return [_change(name, unit, measure(before), measure(after), seed) for name, unit, measure in measures]


def verdict(measured: list[Change]) -> list[str]:
    """Plain words for the two failures preference training is known for."""
    chosen, _, _, collapsed = measured
    lines = []
    if chosen.high is not None and chosen.high < 0 and chosen.change <= -NOTABLE:
        lines.append("Unlearning: the chosen answers became less likely, per token.")
    elif chosen.low is not None and chosen.low > 0 and chosen.change >= NOTABLE:
        lines.append("No unlearning: the chosen answers became more likely, per token.")
    else:
        lines.append("No clear change in how likely the chosen answers are.")
    if collapsed.low is not None and collapsed.low > 0.01:
        lines.append(
            "Rejected tokens are collapsing: their probability falls below 1e-4 more often than before."
        )
    return lines


def as_record(measured: list[Change]) -> list[dict[str, Any]]:
    """For `run.json`."""
    return [asdict(change) | {"sentence": change.sentence()} for change in measured]


def _change(name: str, unit: str, before: Array, after: Array, seed: int) -> Change:
    found = paired_bootstrap(before, after, seed=seed)
    interval = found.interval if found.n >= 10 else None
    return Change(
        name=name,
        unit=unit,
        before=float(before.mean()),
        after=float(after.mean()),
        change=found.value,
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
        pairs=found.n,
    )
