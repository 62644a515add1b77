"""What a probe found, as plain data that JSON can hold and that comes back as it was."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from holdfast.capability.intervals import LEVEL, RESAMPLES, Estimate
from holdfast.capability.pilot_report import PilotReport
from holdfast.capability.recommendation import Recommendation
from holdfast.capability.regime import Regime
from holdfast.capability.summary import Group, TokenSummary
from holdfast.errors import DataError
from holdfast.files import replacing

FORMAT = 2  # of the file; raised when a reader of the former could misread it


@dataclass(frozen=True)
class Probed:
    """What was probed, and how; enough to do it again.

    Attributes:
        rows: good rows of the source; `sampled` of them were probed, with `prompts` different prompts.
        refused: bad rows of the source, which lenient validation left out.
        digest: name of the set of probed rows.
        dtype: of the model's weights.
        cut: probed rows whose answer the length rule cut.
    """

    model: str
    data: str
    rows: int
    sampled: int
    prompts: int
    refused: int
    digest: str
    seed: int
    max_length: int
    dtype: str
    cut: int
    level: float = LEVEL
    resamples: int = RESAMPLES


@dataclass(frozen=True)
class HardRow:
    """A row whose informative tokens the model gives little probability; wrong labels gather here.

    Attributes:
        where: the row's place in its source.
        mean_probability: of its informative tokens.
    """

    where: str
    tokens: int
    mean_probability: float


@dataclass(frozen=True)
class CapabilityReport:
    """A probe of one model on one set of rows.

    Attributes:
        every: all target tokens. `every.mean_probability` is the paper's capability proxy (eq. 5).
        informative: the tokens that the other rows' answers do not give away (see `blind_guess`); None: there are none.
        format_ruled_out: share with p below 0.01 of the other tokens, those given away. Nine rows in ten agree on
            them, so a low probability there is no wrong label but a format that the model does not know.
        guess: mean probability of the informative tokens when guessed from the other rows' answers alone.
        whole_answer: the chance that an answer sampled at temperature 1 is the row's, token for token.
        capability: (p − q)/(1 − q) of the informative tokens, which decides the regime (see `regime`).
        by_index, by_part, by_source: groups of tokens.
        hardest: the rows of least mean probability.
        pilot: what short trainings with each candidate came to; None: none were run.
    """

    probed: Probed
    every: TokenSummary
    informative: TokenSummary | None
    format_ruled_out: Estimate
    guess: Estimate
    capability: Estimate
    whole_answer: Estimate
    by_index: tuple[Group, ...]
    by_part: tuple[Group, ...]
    by_source: tuple[Group, ...]
    hardest: tuple[HardRow, ...]
    regime: Regime
    recommendation: Recommendation
    pilot: PilotReport | None = None
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """Mappings, lists, texts and finite numbers only."""
        found: dict[str, Any] = _plain(asdict(self))
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "probe") -> CapabilityReport:
        """The report that `to_dict` wrote.

        Raises:
            DataError: the mapping is none, or of another version; names the key.
        """
        if values.get("format") != FORMAT:
            raise DataError(
                f"{where}: 'format' is {values.get('format')!r}, not {FORMAT}; run `holdfast probe` again"
            )
        try:
            return _READER.validate_python(values)
        except ValidationError as error:
            fault = error.errors()[0]
            key = ".".join(str(part) for part in fault["loc"])
            raise DataError(f"{where}: '{key}': {fault['msg']}; run `holdfast probe` again") from error

    def save(self, path: Path) -> Path:
        """Write `to_dict` as JSON; the file is whole or as it was."""
        with replacing(path) as beside:
            beside.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> CapabilityReport:
        """Read what `save` wrote.

        Raises:
            DataError: the file cannot be read, or holds no report.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: cannot be read as a probe's JSON ({error})") from error
        if not isinstance(values, Mapping):
            raise DataError(f"{path}: holds a JSON {type(values).__name__}, not an object")
        return cls.from_dict(values, str(path))


_READER: TypeAdapter[CapabilityReport] = TypeAdapter(CapabilityReport)


def _plain(value: Any) -> Any:
    """Tuples as lists; a number that is not finite is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
