"""What every objective is: a frozen dataclass whose fields are its hyperparameters, and which can be called.

Everything a trainer or a reader needs to know stands on the class, so that nothing outside this package ever
branches on an objective's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from typing import ClassVar, Literal

from holdfast.objectives.hyperparameters import check_value, meaning_of

Kind = Literal["pair", "token"]


@dataclass(frozen=True)
class Objective:
    """Base of `PairObjective` and `TokenObjective`; hashable, comparable, checked when built.

    Raises ValueError, naming the field and the value, for a hyperparameter outside its domain.
    """

    name: ClassVar[str]
    """The name in configurations and logs."""
    kind: ClassVar[Kind]
    """"pair": called with `PairLogps`. "token": called with per-token log-probs."""
    paper: ClassVar[str]
    """arXiv id and title, or where else the objective comes from."""
    formula: ClassVar[str]
    """The loss of one pair or one token, in the symbols of `symbols`."""
    needs_reference: ClassVar[bool] = False
    """Whether the frozen reference's log-probs must be supplied."""
    notes: ClassVar[tuple[str, ...]] = ()
    """Where paper, public code and this implementation differ; how extremes are treated."""
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {}
    """Named settings: preset name -> field -> value."""
    symbols: ClassVar[Mapping[str, str]] = {}
    """Field -> meaning, gathered from the fields themselves."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own = {key: meaning_of(value) for key, value in vars(cls).items() if isinstance(value, Field)}
        cls.symbols = {**cls.symbols, **own}

    def __post_init__(self) -> None:
        for field in fields(self):
            value = check_value(field, self.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)  # frozen for the user, not while being built
