"""Where a model stands on the capability continuum for some rows: weak, intermediate or strong.

The paper's table (arXiv 2510.00526) has mean probabilities of 0.76 to 0.81 for maths (strong), 0.50 to 0.59 for
medicine (intermediate) and 0.01 to 0.07 for figlet fonts (weak). It says nothing of what lies between: the boundaries
here stand in its gaps, and a figure whose interval holds a boundary is between two regimes.

The figure that is judged is the probability of the tokens that carry information (see `blind_guess`), less what a guess
made without the prompt gets right: (p − q)/(1 − q), with p and q the means of the model's and the guess's probability.
0 is a model that the prompt tells nothing, 1 one that knows every answer. On long free text, which the table is about,
it is near the plain mean: on 1,319 GSM8K solutions 94 % of the tokens carry information, and q is 0.13.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from holdfast.capability.blind_guess import ROWS_NEEDED
from holdfast.capability.intervals import Estimate

WEAK_BELOW = 0.30  # the paper's weak settings end at 0.07, its intermediate ones begin at 0.50
# Its intermediate settings end at 0.59, its strong ones begin at 0.76: the lower end of that gap, because wrong labels
# lower the figure of a strong model, and are what prior-leaning objectives are for.
STRONG_FROM = 0.60

Name = Literal[
    "weak",
    "between weak and intermediate",
    "intermediate",
    "between intermediate and strong",
    "strong",
    "undecided",
]


@dataclass(frozen=True)
class Regime:
    """Where a model stands, and between which boundaries that was read.

    Attributes:
        name: `undecided` where nothing carries information, rows are too few to tell a format from an answer, there is
            no interval, or it holds both boundaries.
        weak_below, strong_from: of the figure that was judged.
    """

    name: Name
    weak_below: float = WEAK_BELOW
    strong_from: float = STRONG_FROM


def regime_of(capability: Estimate, prompts: int) -> Regime:
    """The regime of the figure described above.

    Args:
        prompts: different ones among the rows. With `ROWS_NEEDED` or fewer no place is given away, so that a format
            which the model knows would pass for knowledge of the answers.
    """
    low, high = capability.low, capability.high
    if low is None or high is None or prompts <= ROWS_NEEDED:
        return Regime("undecided")
    if high < WEAK_BELOW:
        return Regime("weak")
    if low >= STRONG_FROM:
        return Regime("strong")
    if low < WEAK_BELOW and high >= STRONG_FROM:
        return Regime("undecided")
    if low < WEAK_BELOW:
        return Regime("between weak and intermediate")
    if high >= STRONG_FROM:
        return Regime("between intermediate and strong")
    return Regime("intermediate")
