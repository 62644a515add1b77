"""How causal attention of one part is cut into calls of a kernel, so that no call's mask is large.

A part's last query stands at its last key ("bottom-right" causal): a `[prompt | chosen]` has as many queries as keys, a
rejected part has its prompt's keys before its own.
"""

from __future__ import annotations

from typing import NamedTuple

# Under a sliding window a long part is cut into calls of at least this many queries, so that its cost is linear.
BAND = 256
# No call with a mask has more queries than this, so that a mask is no square of a part's length or of its window.
STRIPE = 1024


class Call(NamedTuple):
    """Some of a part's queries, with the keys that any of them sees; the last query stands at the last key."""

    queries: slice
    keys: slice
    causal: bool  # as many keys as queries and none hidden by a window: a kernel needs no mask
    window: int | None  # None: it hides none of these keys

    @property
    def rule(self) -> tuple[int, int, int | None]:
        """What its mask depends on: the number of queries and of keys, and the window."""
        return self.queries.stop - self.queries.start, self.keys.stop - self.keys.start, self.window


def attention_calls(queries: int, keys: int, window: int | None, at_most: int | None) -> list[Call]:
    """The calls of a part.

    Args:
        window: positions that a query sees, its own among them; None: all before it.
        at_most: queries of a call where the window hides nothing; None: any number.
    """
    step = queries
    if window is not None and keys > window:
        step = min(max(window, BAND), STRIPE)
    elif at_most is not None:
        step = -(-queries // -(-queries // at_most))  # as even as it goes
    before = keys - queries
    calls = []
    for first in range(0, queries, step):
        end = min(first + step, queries)
        seen = slice(0 if window is None else max(0, before + first - window + 1), before + end)
        hides = window is not None and seen.stop - seen.start > window
        causal = not hides and seen.stop - seen.start == end - first
        calls.append(Call(slice(first, end), seen, causal, window if hides else None))
    return calls
