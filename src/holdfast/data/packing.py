"""Rows of model input, one a pair or a demonstration, and the shared-prefix form of a pair.

Chosen and rejected repeat one prompt, and so would the work of a plain forward. In a shared-prefix row
`[prompt | chosen | rejected]` the prompt is computed once: both completions see it and themselves, never each
other, and the rejected part's positions restart where the prompt ends. Loss and gradients equal those of the
plain rows.

Each completion's last token is a target but never an input, so it is left out of the row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

PAD, PROMPT, CHOSEN, REJECTED = -1, 0, 1, 2

Integers = npt.NDArray[np.int64]
# Tokens of a row's parts: prompt, chosen, rejected. A plain row is all prompt.
Lengths = tuple[int, int, int]


class Row(NamedTuple):
    """One row of model input and where its scored tokens are predicted."""

    input_ids: Integers
    lengths: Lengths  # of the parts that make up `input_ids`
    sources: Integers  # for each scored token: the index in this row whose hidden state predicts it
    targets: Integers  # the scored tokens themselves


def shared_prefix_row(prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int]) -> Row:
    """One row for a pair; its scored tokens are all of `chosen`, then all of `rejected`.

    Raises:
        ValueError: if the prompt or a completion is empty; a first token needs a state that predicts it.
    """
    _require_tokens(prompt=prompt, chosen=chosen, rejected=rejected)
    lengths = len(prompt), len(chosen) - 1, len(rejected) - 1
    last, branch = len(prompt) - 1, lengths[0] + lengths[1]
    return Row(
        input_ids=join((prompt, chosen[:-1], rejected[:-1])),
        lengths=lengths,
        sources=join((np.arange(last, branch), (last,), np.arange(branch, sum(lengths)))),
        targets=join((chosen, rejected)),
    )


def plain_row(prompt: Sequence[int], completion: Sequence[int]) -> Row:
    """One plain causal row `[prompt | completion]`; its scored tokens are all of `completion`."""
    _require_tokens(prompt=prompt, completion=completion)
    inputs = join((prompt, completion[:-1]))
    return Row(inputs, (len(inputs), 0, 0), np.arange(len(prompt) - 1, len(inputs)), join((completion,)))


def masked_row(input_ids: Sequence[int], scored: Sequence[bool]) -> Row:
    """One plain causal row whose scored tokens are marked by `scored` (several assistant turns, say).

    Raises:
        ValueError: if the first token is scored (nothing predicts it) or none is.
    """
    if len(input_ids) != len(scored):
        raise ValueError(f"{len(input_ids)} tokens but {len(scored)} mask entries")
    tokens, trained = join((input_ids,)), np.flatnonzero(np.asarray(scored, dtype=bool))
    if not len(trained):
        raise ValueError("no token of the row is trained")
    if trained[0] == 0:
        raise ValueError("the first token of a row cannot be trained: nothing comes before it to predict it")
    last = int(trained[-1])
    return Row(tokens[:last], (last, 0, 0), trained - 1, tokens[trained])


def position_ids(lengths: Lengths) -> Integers:
    """The position of each token of a row: the rejected part counts on from the prompt's end."""
    prompt, chosen, rejected = lengths
    return join((np.arange(prompt + chosen), np.arange(prompt, prompt + rejected)))


def segment_ids(lengths: Lengths) -> Integers:
    """PROMPT, CHOSEN or REJECTED for each token of a row."""
    return np.repeat((PROMPT, CHOSEN, REJECTED), lengths)


def shared_prefix_mask(
    segment_ids: Tensor, position_ids: Tensor, sliding_window: int | None = None
) -> Tensor:
    """Who may attend to whom in padded shared-prefix rows.

    A query sees keys of its own segment and of the prompt, not after itself, and with a sliding window only
    keys less than `sliding_window` *positions* back: a distance in the text, not in the row.
    A padding token sees itself alone, so that no softmax is empty.

    Args:
        segment_ids: (rows, time) of PAD, PROMPT, CHOSEN or REJECTED.
        position_ids: (rows, time), counted from the row's start, the rejected part from the prompt's end.
        sliding_window: width in tokens, or None for full attention.

    Returns:
        (rows, 1, time, time) bool, True where attention is allowed.
    """
    query, key = segment_ids[:, :, None], segment_ids[:, None, :]
    time = segment_ids.shape[1]
    index = torch.arange(time, device=segment_ids.device)
    not_after = index[:, None] >= index[None, :]
    allowed = not_after & ((key == query) | (key == PROMPT)) & (query != PAD)
    if sliding_window is not None:
        allowed &= position_ids[:, :, None] - position_ids[:, None, :] < sliding_window
    allowed |= index[:, None] == index[None, :]
    return allowed[:, None]


def join(parts: Iterable[Sequence[int] | Integers]) -> Integers:
    """`parts` end to end."""
    return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])


def _require_tokens(**parts: Sequence[int]) -> None:
    for name, tokens in parts.items():
        if len(tokens) == 0:
            raise ValueError(f"the {name} has no tokens")
