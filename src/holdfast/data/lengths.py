"""`max_length`: one rule for both sides of a pair, and a report of every token it cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from holdfast.data.faults import RowFault
from holdfast.errors import ConfigError, did_you_mean

Overflow = Literal["cut", "drop", "error"]
MAX_LENGTH = 1024  # tokens of a prompt and one completion, where nothing else is set


@dataclass(frozen=True)
class LengthRule:
    """How long a row may be, in tokens, and what happens to a longer one.

    A prompt over `max_prompt_length` is cut to it; without that, a prompt that fills `max_length` alone is a fault,
    not cut in silence. If prompt and longest completion together are over `max_length`, the prompt gives way first,
    but keeps half of `max_length` (or all it has, if that is less); then the completions are cut to the room left.
    Prompts lose tokens from the left and keep a leading BOS; completions lose them from the right, and with them the
    end token.

    Attributes:
        max_length: prompt and one completion together; None for no limit.
        max_prompt_length: the prompt alone; None for no limit of its own.
        on_overflow: `cut` as above, `drop` the row, or make it an `error`.

    Raises:
        ConfigError: lengths that leave no room for a prompt token and a completion token; an unknown overflow
            rule.
    """

    max_length: int | None
    max_prompt_length: int | None = None
    on_overflow: Overflow = "cut"

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise ConfigError(
                f"max_length must be at least 2 (a prompt token and an answer's), not {self.max_length}"
            )
        if self.max_prompt_length is not None and self.max_prompt_length < 1:
            raise ConfigError(f"max_prompt_length must be at least 1, not {self.max_prompt_length}")
        if self.max_length and self.max_prompt_length and self.max_prompt_length >= self.max_length:
            raise ConfigError(
                f"max_prompt_length {self.max_prompt_length} leaves no room in max_length {self.max_length}"
            )
        if self.on_overflow not in get_args(Overflow):
            raise ConfigError(
                f"on_overflow '{self.on_overflow}'{did_you_mean(self.on_overflow, get_args(Overflow))}"
            )

    def fit(self, prompt: int, completion: int) -> tuple[int, int]:
        """Tokens kept of a prompt, and at most of each completion; `completion` is the longest's length."""
        if self.max_prompt_length is not None:
            prompt = min(prompt, self.max_prompt_length)
        if self.max_length is not None:
            prompt = min(prompt, max(self.max_length // 2, self.max_length - completion))
            completion = min(completion, self.max_length - prompt)
        return prompt, completion

    def room(self, prompt: int, completion: int) -> tuple[int, int] | None:
        """As `fit`; None where the row is to be dropped.

        Raises:
            RowFault: `too_long`, where a longer row is to be an error, or the prompt alone leaves no room.
        """
        kept = self.fit(prompt, completion)
        if kept == (prompt, completion):
            return kept
        if self.on_overflow == "cut":
            if self.max_prompt_length is None and self.max_length is not None and prompt >= self.max_length:
                raise RowFault(
                    "too_long",
                    f"the prompt alone has {prompt} tokens, and max_length is {self.max_length}: raise it, or set "
                    "max_prompt_length to cut such prompts from the left",
                )
            return kept
        if self.on_overflow == "drop":
            return None
        limits = f"max_length {self.max_length}" + (
            f", max_prompt_length {self.max_prompt_length}" if self.max_prompt_length is not None else ""
        )
        raise RowFault(
            "too_long", f"{prompt} prompt tokens and {completion} completion tokens are over {limits}"
        )


def cut_left(tokens: Sequence[int], keep: int, *, keep_first: bool) -> list[int]:
    """The last `keep` tokens; with `keep_first`, the first token and the last `keep - 1`."""
    if keep >= len(tokens):
        return list(tokens)
    head = list(tokens[:1]) if keep_first else []
    return head + list(tokens[len(tokens) - keep + len(head) :])


@dataclass
class SideLengths:
    """What the rule did to one side (prompt, chosen, ...) of the rows kept."""

    rows: int = 0
    rows_cut: int = 0
    tokens: int = 0  # before cutting
    tokens_cut: int = 0


@dataclass
class LengthReport:
    """Counts over many rows. Reports of parts add up by `merge`.

    Attributes:
        sides: by side, the rows and tokens there were and those cut. A completion that was cut has no end
            token.
        dropped: rows over the limits that `drop` left out.
        equal_after_cut: pairs left out because what was kept of both completions was the same.
    """

    sides: dict[str, SideLengths] = field(default_factory=dict)
    dropped: int = 0
    equal_after_cut: int = 0

    def count(self, **lengths: tuple[int, int]) -> None:
        """Count one row: for each side, its tokens before and after."""
        for name, (before, after) in lengths.items():
            side = self.sides.setdefault(name, SideLengths())
            side.rows += 1
            side.rows_cut += after < before
            side.tokens += before
            side.tokens_cut += before - after

    def merge(self, other: LengthReport) -> None:
        """Add another part's counts to this one's."""
        for name, theirs in other.sides.items():
            mine = self.sides.setdefault(name, SideLengths())
            for key, value in asdict(theirs).items():
                setattr(mine, key, getattr(mine, key) + value)
        self.dropped += other.dropped
        self.equal_after_cut += other.equal_after_cut

    def as_dict(self) -> Mapping[str, Any]:
        """For the run record."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{name}: {side.rows_cut} of {side.rows} rows cut ({_percent(side.rows_cut, side.rows)}), "
            f"{side.tokens_cut} of {side.tokens} tokens ({_percent(side.tokens_cut, side.tokens)})"
            for name, side in self.sides.items()
        ]
        if self.dropped:
            lines.append(f"dropped for their length: {self.dropped} rows")
        if self.equal_after_cut:
            lines.append(f"left out, both sides the same after the cut: {self.equal_after_cut} pairs")
        return "\n".join(lines)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "no tokens"
