"""Shared-prefix rows: a preference pair as one row `[prompt | chosen | rejected]`.

Chosen and rejected repeat one prompt, and so would the work of a plain forward. In a shared-prefix row the
prompt is computed once: both completions see it and themselves, never each other, and the rejected part's
positions restart where the prompt ends. Loss and gradients equal those of the plain rows.

Each completion's last token is a target but never an input, so it is left out of the row.
Shapes: `rows` = pairs in shared-prefix form, 2 x pairs in plain form; `time` = the longest row;
`tokens` = all scored (completion) tokens of the batch, without padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PAD, PROMPT, CHOSEN, REJECTED = -1, 0, 1, 2


class Row(NamedTuple):
    """One row of model input and where its scored tokens are predicted."""

    input_ids: list[int]
    position_ids: list[int]
    segment_ids: list[int]
    sources: list[int]  # for each scored token: the index in this row whose hidden state predicts it
    targets: list[int]  # the scored tokens themselves


def shared_prefix_row(prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int]) -> Row:
    """One row for a pair; its scored tokens are all of `chosen`, then all of `rejected`.

    Raises:
        ValueError: if the prompt or a completion is empty; a first token needs a state that predicts it.
    """
    _require_tokens(prompt=prompt, chosen=chosen, rejected=rejected)
    start = len(prompt)
    chosen_inputs, rejected_inputs = chosen[:-1], rejected[:-1]
    rejected_start = start + len(chosen_inputs)
    return Row(
        input_ids=[*prompt, *chosen_inputs, *rejected_inputs],
        position_ids=[
            *range(start + len(chosen_inputs)),
            *range(start, start + len(rejected_inputs)),
        ],
        segment_ids=[PROMPT] * start + [CHOSEN] * len(chosen_inputs) + [REJECTED] * len(rejected_inputs),
        sources=[
            start - 1,
            *range(start, rejected_start),
            start - 1,
            *range(rejected_start, rejected_start + len(rejected_inputs)),
        ],
        targets=[*chosen, *rejected],
    )


def plain_row(prompt: Sequence[int], completion: Sequence[int]) -> Row:
    """One plain causal row `[prompt | completion]`; its scored tokens are all of `completion`."""
    _require_tokens(prompt=prompt, completion=completion)
    inputs = [*prompt, *completion[:-1]]
    return Row(
        input_ids=inputs,
        position_ids=list(range(len(inputs))),
        segment_ids=[PROMPT] * len(inputs),
        sources=list(range(len(prompt) - 1, len(inputs))),
        targets=list(completion),
    )


def masked_row(input_ids: Sequence[int], scored: Sequence[bool]) -> Row:
    """One plain causal row whose scored tokens are marked by `scored` (several assistant turns, say).

    Raises:
        ValueError: if the first token is scored (nothing predicts it) or none is.
    """
    if len(input_ids) != len(scored):
        raise ValueError(f"{len(input_ids)} tokens but {len(scored)} mask entries")
    if not any(scored):
        raise ValueError("no token of the row is trained")
    if scored[0]:
        raise ValueError("the first token of a row cannot be trained: nothing comes before it to predict it")
    last = max(index for index, flag in enumerate(scored) if flag)
    inputs = list(input_ids[:last])
    trained = [index for index, flag in enumerate(scored) if flag]
    return Row(
        input_ids=inputs,
        position_ids=list(range(len(inputs))),
        segment_ids=[PROMPT] * len(inputs),
        sources=[index - 1 for index in trained],
        targets=[input_ids[index] for index in trained],
    )


def shared_prefix_mask(
    segment_ids: Tensor, position_ids: Tensor, sliding_window: int | None = None
) -> Tensor:
    """Who may attend to whom in shared-prefix rows.

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


def _require_tokens(**parts: Sequence[int]) -> None:
    for name, tokens in parts.items():
        if len(tokens) == 0:
            raise ValueError(f"the {name} has no tokens")
