"""How an objective declares a hyperparameter: its default, its meaning, and the values it may take.

`number`, `switch` and `choice` make dataclass fields. The meaning feeds `holdfast explain`; the check runs
when the objective is built, so a wrong value is refused alike from Python, YAML and the command line.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import Field, field
from numbers import Real
from typing import Any

Check = Callable[[str, object], object]
"""`check(label, value)`: the value to store, or a ValueError that starts with the label."""


def described(meaning: str, check: Check) -> dict[str, object]:
    """The metadata of a hyperparameter's dataclass field."""
    return {"meaning": meaning, "check": check}


def meaning_of(declared: Field[Any]) -> str:
    return str(declared.metadata["meaning"])


def check_value(declared: Field[Any], owner: str, value: object) -> object:
    """`value` as the field stores it; ValueError names the owner, the field and the value."""
    check: Check = declared.metadata["check"]
    return check(f"{owner}: {declared.name}", value)


def number(
    default: float | None,
    meaning: str,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
    at_most: float = math.inf,
) -> Any:
    """A finite number, stored as float. With a default of None, None is allowed and means "not given"."""

    def check(label: str, value: object) -> float | None:
        if value is None and default is None:
            return None
        if isinstance(value, bool) or not isinstance(value, Real):
            hint = " (a number in quotes is text)" if isinstance(value, str) else ""
            raise ValueError(f"{label} must be a number, got {value!r}{hint}")
        value = float(value)
        if not math.isfinite(value):
            raise ValueError(f"{label} must be finite, got {value!r}")
        limits = [
            (value > above, f"> {above:g}"),
            (value >= at_least, f">= {at_least:g}"),
            (value < below, f"< {below:g}"),
            (value <= at_most, f"<= {at_most:g}"),
        ]
        for met, limit in limits:
            if not met:
                raise ValueError(f"{label} must be {limit}, got {value!r}")
        return value

    return field(default=default, metadata=described(meaning, check))


def switch(default: bool, meaning: str) -> Any:
    """True or False, and nothing that merely resembles them."""

    def check(label: str, value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError(f"{label} must be true or false, got {value!r}")
        return value

    return field(default=default, metadata=described(meaning, check))


def choice(default: str, meaning: str, *, among: tuple[str, ...]) -> Any:
    """One of a few names."""

    def check(label: str, value: object) -> str:
        if not isinstance(value, str) or value not in among:
            raise ValueError(f"{label} must be {' or '.join(among)}, got {value!r}")
        return value

    return field(default=default, metadata=described(meaning, check))
