"""What the other rows' answers give away: the target tokens that can be guessed without reading the prompt.

A fixed answer format drowns the mean probability of a data set's tokens: a model that knows nothing of the task still
knows the braces. So the tokens of a row are held against the answers of the *other* rows, and nothing else. The context
of a token is the longest stretch of its own answer so far, up to `LONGEST` tokens and the answer's start among them,
that at least `ROWS_NEEDED` other rows share. Where `AGREEMENT` of those rows go on with one and the same token, the
place is given away; every other place carries information. The rule reads neither the model nor the token that stands
at the place, so it does not select tokens for being hard or easy.

With `n` other rows at a context, a token that `c` of them go on with is guessed with probability c/(n + 1): one row's
worth is left for what none of them has. A row that meets a context again counts once for every token it goes on with.
Rows of one prompt count as one row: a copy of a row says nothing of its format, and would give its answer away.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

AGREEMENT = 0.9  # share of the other rows that must go on alike, of n + 1
ROWS_NEEDED = 9  # the least n with n/(n + 1) >= AGREEMENT: fewer rows cannot give a place away
LONGEST = 8  # tokens of context, the answer's start counting as one

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


class BlindGuess(NamedTuple):
    """For each target token, what the other rows' answers say of its place; all (tokens,)."""

    agreement: Floats  # the greatest share of the other rows that go on with one token, of n + 1
    probability: Floats  # of the token that stands there, guessed from the other rows

    @property
    def informative(self) -> NDArray[np.bool_]:
        """(tokens,) the places that the other rows do not give away."""
        return self.agreement < AGREEMENT


def blind_guess(targets: Integers, row_of: Integers, prompt_of: Integers | None = None) -> BlindGuess:
    """Hold every target token against the answers of the other rows.

    Time grows as tokens · log(tokens); memory with the tokens. The result does not depend on the rows' order.

    Args:
        targets: (tokens,) ids, row after row.
        row_of: (tokens,) the number of each token's row, rising.
        prompt_of: (rows,) the number of each row's prompt; None: each row has its own.
    """
    count = len(targets)
    agreement, probability = np.zeros(count), np.zeros(count)
    starts = np.flatnonzero(np.diff(row_of, prepend=-1))
    place = np.arange(count) - np.repeat(starts, np.diff(np.r_[starts, count]))
    owner = row_of if prompt_of is None else prompt_of[row_of]
    # what may precede a token: another token, the answer's start, or nothing, before the start
    tokens, known = np.unique(targets, return_inverse=True)
    start, nothing = len(tokens), len(tokens) + 1
    alive = np.arange(count)  # the tokens whose context may still be shared by enough other rows
    context = np.zeros(count, np.int64)  # (alive,) the context's number; at order 0 there is one
    for order in range(LONGEST + 1):
        if not len(alive):
            break
        if order:
            before = np.where(place[alive] == order - 1, start, nothing)
            inside = place[alive] >= order
            before[inside] = known[alive[inside] - order]
            context = _numbered(context * (nothing + 1) + before)
        found = _of_others(context, known[alive], owner[alive])
        used = (found.others >= ROWS_NEEDED) | (order == 0)
        agreement[alive[used]] = found.most[used] / (found.others[used] + 1)
        probability[alive[used]] = found.same[used] / (found.others[used] + 1)
        # a longer context is shared by no more rows; every row that shares this one must stay to be counted
        shared = found.rows_at > ROWS_NEEDED
        alive, context = alive[shared], context[shared]
    return BlindGuess(agreement, probability)


class _Others(NamedTuple):
    """Per token: how many other rows share its context, go on with its token, and with their commonest one."""

    others: Integers
    same: Integers
    most: Integers  # exact wherever it is more than half of `others`, which is all that agreement asks for
    rows_at: Integers  # as `others`, own row included


def _of_others(context: Integers, token: Integers, row: Integers) -> _Others:
    """Count rows by context and by continuation, leaving out each token's own row."""
    width = int(token.max()) + 1
    goes_on, own = np.unique(context * width + token, return_inverse=True)  # each (context, token) once
    # each (row, context, token) once: a row counts once for a continuation
    pairs = np.unique(row * len(goes_on) + own)
    rows_with = np.bincount(pairs % len(goes_on), minlength=len(goes_on))
    contexts = int(context.max()) + 1
    of_context = goes_on // width
    rows_at = np.bincount(of_context, weights=rows_with, minlength=contexts).astype(np.int64)
    # the commonest continuation of each context; of equals, the smallest token
    best = np.lexsort((goes_on, -rows_with, of_context))
    first = best[np.r_[True, np.diff(of_context[best]) != 0]]  # one entry a context, in the contexts' order
    # what the own row adds to each count
    own_keys, own_counts = np.unique(
        (pairs // len(goes_on)) * contexts + of_context[pairs % len(goes_on)], return_counts=True
    )
    own_here = own_counts[np.searchsorted(own_keys, row * contexts + context)]
    commonest = row * len(goes_on) + first[context]
    own_commonest = pairs[np.minimum(np.searchsorted(pairs, commonest), len(pairs) - 1)] == commonest
    return _Others(
        others=rows_at[context] - own_here,
        same=rows_with[own] - 1,
        most=rows_with[first[context]] - own_commonest,
        rows_at=rows_at[context],
    )


def _numbered(keys: Integers) -> Integers:
    """The same partition, numbered from 0."""
    numbers: Integers = np.unique(keys, return_inverse=True)[1].astype(np.int64)
    return numbers
