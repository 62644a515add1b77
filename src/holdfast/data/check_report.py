"""What a check of rows found, as plain data: the terminal, JSON and HTML show the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Histogram:
    """Counts of lengths: `counts[i]` rows lie in [edges[i], edges[i + 1]); the last bin takes its right edge too."""

    edges: list[int]
    counts: list[int]
    mean: float
    median: float
    largest: int


@dataclass(frozen=True)
class LengthBias:
    """Whether chosen completions are longer than rejected ones, over the good pairs.

    Attributes:
        mean_difference: chosen minus rejected, in the report's unit.
        chosen_longer: share of pairs whose chosen side is longer.
        effect_size: Cohen's d of the paired differences (their mean over their standard deviation).
        low, high: 95 % interval of the effect size.
    """

    pairs: int
    mean_difference: float
    chosen_longer: float
    effect_size: float
    low: float
    high: float


@dataclass(frozen=True)
class TemplateCheck:
    """One property of the chat template, held against every good row."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Example:
    """A row as the model will read it: pieces of decoded text, each with whether its tokens are trained."""

    where: str
    sides: Mapping[str, list[tuple[str, bool]]]


@dataclass(frozen=True)
class CheckReport:
    """Everything `holdfast check` shows.

    Attributes:
        formats: the layout of each file.
        rows, good: rows read, and rows that can be trained on.
        refused: bad rows by reason, most frequent first.
        problems: the bad rows (where, reason, detail, row excerpt), up to `validation.LISTED` of them; all go to
            the quarantine file.
        unit: what lengths are counted in; characters where no tokenizer was given.
        lengths: by side, as a histogram.
        truncation: what the length rule cut, per side, and the rule itself; None without a tokenizer.
        label_agreement: share of pairs with scores in which the chosen one scores higher; None without scores.
        warnings: sentences on what is no fault, yet worth knowing.
    """

    source: str
    kind: Literal["preference", "sft"]
    formats: Mapping[str, str]
    rows: int
    good: int
    refused: Mapping[str, int]
    problems: list[Mapping[str, str]]
    unit: Literal["tokens", "characters"]
    lengths: Mapping[str, Histogram]
    truncation: Mapping[str, Any] | None
    length_bias: LengthBias | None
    duplicate_prompts: int
    duplicate_rows: int
    label_agreement: float | None
    template: list[TemplateCheck] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    digest: str = ""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For `--json` and the run record."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CheckReport:
        """The report that `as_dict` gave, also once it was JSON."""
        bias = values["length_bias"]
        return cls(
            **{
                **values,
                "lengths": {side: Histogram(**found) for side, found in values["lengths"].items()},
                "length_bias": None if bias is None else LengthBias(**bias),
                "template": [TemplateCheck(**check) for check in values["template"]],
                "examples": [
                    Example(
                        example["where"],
                        {
                            side: [(text, trained) for text, trained in pieces]
                            for side, pieces in example["sides"].items()
                        },
                    )
                    for example in values["examples"]
                ],
            }
        )

    @property
    def layout(self) -> str:
        """The layouts found, each once: normally one."""
        return ", ".join(dict.fromkeys(self.formats.values()))

    def left_out(self) -> int:
        """Rows that the length rule leaves out: neither good nor refused."""
        return self.rows - self.good - sum(self.refused.values())
