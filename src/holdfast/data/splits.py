"""Disjoint splits by prompt: all its rows fall on one side, whatever the order or size of the file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from itertools import accumulate
from typing import TypeVar

from holdfast.data.records import Record, SFTRecord, canonical_json
from holdfast.errors import ConfigError

R = TypeVar("R", bound=Record)


def split_by_prompt(records: Iterable[R], fractions: Mapping[str, float], seed: int) -> dict[str, list[R]]:
    """Divide records by a seeded hash of their prompt.

    A prompt's side depends on the prompt, the seed and the fractions alone, so it survives reordering and
    growth of the file, and a preference row and its chosen side as a demonstration fall on one side.
    Fractions are of prompts, met on average; where they sum to less than 1, the other rows fall on no side.

    Args:
        fractions: share of each side, in order: `{"sft": 0.33, "preference": 0.62, "eval": 0.05}`.

    Returns:
        The rows of each side, in their order.

    Raises:
        ConfigError: a fraction outside [0, 1], or fractions that sum to more than 1.
    """
    rows = list(records)
    sides = sides_of((position(record, seed) for record in rows), fractions)
    return {name: [rows[number] for number in numbers] for name, numbers in sides.items()}


def sides_of(positions: Iterable[float], fractions: Mapping[str, float]) -> dict[str, list[int]]:
    """The numbers of the rows that fall on each side, by their `position`; see `split_by_prompt`."""
    bad = {name: share for name, share in fractions.items() if not 0 <= share <= 1}
    if bad or not fractions:
        raise ConfigError(f"split fractions must be between 0 and 1, not {bad or 'absent'}")
    total = math.fsum(fractions.values())
    if total > 1 + 1e-9:
        raise ConfigError(f"split fractions sum to {total:g}; together they may be 1 at most")
    # a sum that misses 1 by rounding is 1: no row may fall into the gap
    ends = [1.0 if end > 1 - 1e-9 else end for end in accumulate(fractions.values())]
    bounds = dict(zip(fractions, ends, strict=True))
    sides: dict[str, list[int]] = {name: [] for name in fractions}
    for number, at in enumerate(positions):
        side = next((name for name, bound in bounds.items() if at < bound), None)
        if side is not None:
            sides[side].append(number)
    return sides


def position(record: Record, seed: int) -> float:
    """Where the record's prompt falls in [0, 1), uniformly over prompts and seeds."""
    prompt = record.text if isinstance(record, SFTRecord) and record.text is not None else record.prompt
    digest = blake2b(f"{seed}\n{canonical_json(prompt)}".encode(), digest_size=8).digest()
    # 53 bits: all that a float below 1 can hold
    return (int.from_bytes(digest) >> 11) / 2**53


def digest(records: Iterable[Record]) -> str:
    """32 hexadecimal digits that name a set of rows, whatever their order: for the run record."""
    return digest_of_ids(record.id for record in records)


def digest_of_ids(ids: Iterable[str]) -> str:
    """As `digest`, from the rows' ids."""
    return blake2b("\n".join(sorted(ids)).encode(), digest_size=16).hexdigest()
