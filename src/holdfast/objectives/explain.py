"""What there is to say about an objective, as data; the command line renders it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields

from holdfast.objectives.base import Kind, Objective
from holdfast.objectives.registry import objective_class, objective_spec
from holdfast.objectives.shape import Shape, shape_of
from holdfast.objectives.token import TokenObjective


@dataclass(frozen=True)
class Symbol:
    """One hyperparameter: its field, its meaning in the paper's symbol, its default."""

    field: str
    meaning: str
    default: object


@dataclass(frozen=True)
class Explanation:
    """Everything `holdfast explain NAME` shows. `shape`: of a token objective at its defaults."""

    name: str
    kind: Kind
    title: str
    formula: str
    symbols: tuple[Symbol, ...]
    needs: str
    paper: str
    notes: tuple[str, ...]
    presets: Mapping[str, Mapping[str, object]]
    shape: Shape | None


def explain(name: str) -> Explanation:
    """Describe a registered objective; ValueError names the nearest one when there is none."""
    cls = objective_class(name)
    built = cls()
    defaults = objective_spec(built)
    return Explanation(
        name=cls.name,
        kind=cls.kind,
        title=(inspect.getdoc(cls) or cls.name).splitlines()[0],
        formula=cls.formula,
        symbols=tuple(Symbol(f.name, cls.symbols[f.name], defaults[f.name]) for f in fields(cls)),
        needs=_needs(cls),
        paper=cls.paper,
        notes=cls.notes,
        presets=cls.presets,
        shape=shape_of(built) if isinstance(built, TokenObjective) else None,
    )


def _needs(cls: type[Objective]) -> str:
    if cls.kind == "token":
        return "prompts with target completions; no reference model"
    if cls.needs_reference:
        return "preference pairs, and a frozen reference model's summed log-prob of each completion"
    return "preference pairs; no reference model"
