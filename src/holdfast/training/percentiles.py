"""Percentiles of the base model's target probabilities, for objectives whose bounds are quantiles.

A quantile threshold says what share of the target tokens counts, instead of which probabilities: `{name: threshold,
low_quantile: 0.1}` keeps the nine tenths that the *base* model found likeliest (arXiv 2510.00526, the thresholded
variants). The probabilities are measured before the first step, on the rows that train, and stay what they are, also in
a run that is resumed: the model that one would measure then is no longer the base model.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.errors import ConfigError, DataError

COUNT = 101  # 0 to 100


@dataclass(frozen=True)
class Percentiles:
    """Probabilities at 0, 1, ..., 100 % of the target tokens, rising.

    Raises:
        DataError: other than 101 rising numbers from 0 to 1.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        numbers = all(type(value) in (int, float) for value in self.values)
        if len(self.values) != COUNT or not numbers or not _rising([0, *self.values, 1]):
            raise DataError(f"percentiles are {COUNT} rising probabilities, not {_begin(self.values)}")

    def at(self, share: float) -> float:
        """The probability below which a share in [0, 1] of the tokens lies; linear between two percentiles."""
        return float(np.interp(100 * share, np.arange(COUNT), self.values))

    @classmethod
    def of(cls, probabilities: Any) -> Percentiles:
        """Those of (tokens,) probabilities."""
        found = np.quantile(np.asarray(probabilities, dtype=np.float64), np.arange(COUNT) / (COUNT - 1))
        return cls(tuple(found.tolist()))

    @classmethod
    def of_probe(cls, path: str | Path, model: str | None = None) -> Percentiles:
        """Those of all target tokens in the `probe.json` that `holdfast probe` wrote.

        Args:
            model: the name of the model that is to be trained, if it has one.

        Raises:
            DataError: the file cannot be read, or holds no percentiles.
            ConfigError: it is a probe of another model.
        """
        try:
            document = json.loads(Path(path).expanduser().read_bytes())
            values, model_of_probe = document["every"]["percentiles"], str(document["probed"]["model"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"'{path}' holds no percentiles of a probe ({type(error).__name__}: {error}): give the probe.json that "
                "`holdfast probe` writes"
            ) from error
        if model is not None and not _is_named(model, model_of_probe):
            raise ConfigError(
                f"'{path}' is a probe of '{model_of_probe}', and the model to train is '{model}': its percentiles are "
                "not this model's. Probe this one, or leave `percentiles` out to have them measured"
            )
        try:
            return cls(tuple(values))
        except (DataError, TypeError) as error:
            raise DataError(f"'{path}': every.percentiles: {error}") from error


def _is_named(model: str, other: str) -> bool:
    """Whether two names are one hub name, or lead to one folder."""
    one, two = (Path(name).expanduser() for name in (model, other))
    return model == other or (one.exists() and two.exists() and one.samefile(two))


def _rising(values: Sequence[float]) -> bool:
    return all(low <= high for low, high in itertools.pairwise(values))


def _begin(values: Any) -> str:
    text = repr(values)
    return text if len(text) <= 60 else f"{text[:57]}..."
