"""Percentiles of the base model's target probabilities: measured once, recorded, and turned into thresholds.

A quantile threshold says what share of the target tokens counts, instead of which probabilities:
`{name: threshold, low_quantile: 0.1}` keeps the 90 % of tokens that the *base* model found likeliest. The probability
at that quantile is measured before the first step, on the rows that train, and stays what it is, also after a resume.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from holdfast.capability.report import CapabilityReport
from holdfast.capability.scoring import score_tokens
from holdfast.errors import ConfigError, DataError

COUNT = 101  # 0 to 100
# What a specification may say in the place of a probability.
QUANTILE_KEYS: Mapping[str, str] = {"low_quantile": "low", "high_quantile": "high"}


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

    def at(self, quantile: float) -> float:
        """The probability below which a share `quantile` of the tokens lies; linear between two percentiles.

        Raises:
            ConfigError: a quantile that is not between 0 and 1.
        """
        if isinstance(quantile, bool) or not isinstance(quantile, int | float) or not 0 <= quantile <= 1:
            raise ConfigError(f"a quantile lies between 0 and 1, not {quantile!r}")
        return float(np.interp(100 * quantile, np.arange(COUNT), self.values))

    def to_list(self) -> list[float]:
        """For a run's record."""
        return list(self.values)

    @classmethod
    def from_list(cls, values: Any, where: str = "percentiles") -> Percentiles:
        """What `to_list` wrote.

        Raises:
            DataError: it is something else; starts with `where`.
        """
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise DataError(f"{where}: a list of {COUNT} probabilities is wanted, not {_begin(values)}")
        try:
            return cls(tuple(values))
        except DataError as error:
            raise DataError(f"{where}: {error}") from error

    @classmethod
    def of_probe(cls, path: str | Path) -> Percentiles:
        """Those of all target tokens in a `probe.json`.

        Raises:
            DataError: the file cannot be read, or holds no probe.
        """
        return cls.from_list(CapabilityReport.load(path).every.percentiles, str(path))


def measure_percentiles(
    model: nn.Module, dataset: Any, pad_token_id: int, *, batch_size: int = 8, progress: bool = False
) -> Percentiles:
    """Percentiles of `dataset`'s target tokens under the model as it stands; arguments and errors as `score_tokens`."""
    scored = score_tokens(model, dataset, pad_token_id, batch_size=batch_size, progress=progress)
    found = np.quantile(scored.probabilities, np.arange(COUNT) / (COUNT - 1))
    return Percentiles(tuple(found.tolist()))


def has_quantiles(spec: Any) -> bool:
    """Whether an objective's specification names a quantile, in a threshold or in the base of one."""
    if not isinstance(spec, Mapping):
        return False
    return any(key in spec for key in QUANTILE_KEYS) or has_quantiles(spec.get("base"))


def with_probabilities(spec: Mapping[str, Any], percentiles: Percentiles) -> dict[str, Any]:
    """The specification with each quantile replaced by the probability there.

    Raises:
        ConfigError: a quantile outside 0 to 1; a bound given both ways; quantiles of anything but a threshold.
    """
    found = dict(spec)
    if has_quantiles(found.get("base")):
        found["base"] = with_probabilities(found["base"], percentiles)
    for key, bound in QUANTILE_KEYS.items():
        if key not in found:
            continue
        if found.get("name") != "threshold":
            raise ConfigError(f"objective.{key}: belongs to a threshold, not to {found.get('name')!r}")
        if bound in found:
            raise ConfigError(f"objective.{key}: give this or {bound}, not both")
        try:
            found[bound] = percentiles.at(found.pop(key))
        except ConfigError as error:
            raise ConfigError(f"objective.{key}: {error}") from error
    return found


def thresholds_of_run(
    spec: Mapping[str, Any], recorded: Any, measure: Callable[[], Percentiles], where: str = "percentiles"
) -> tuple[dict[str, Any], Percentiles]:
    """The specification a run trains with, and the percentiles for its record.

    A run that goes on takes what it recorded: the model it would measure now is no longer the base model.

    Args:
        recorded: what `Percentiles.to_list` gave when the run began; None for a run that begins.
        measure: called once, if nothing was recorded.

    Raises:
        DataError: the record is no percentiles; starts with `where`.
        ConfigError: as `with_probabilities`, before anything is measured.
    """
    with_probabilities(spec, _uniform())
    percentiles = measure() if recorded is None else Percentiles.from_list(recorded, where)
    return with_probabilities(spec, percentiles), percentiles


def _uniform() -> Percentiles:
    """What stands in where a specification is checked before anything is measured."""
    return Percentiles(tuple(percent / (COUNT - 1) for percent in range(COUNT)))


def _rising(values: Sequence[float]) -> bool:
    return all(low <= high for low, high in itertools.pairwise(values))


def _begin(values: Any) -> str:
    text = repr(values)
    return text if len(text) <= 60 else f"{text[:57]}..."
