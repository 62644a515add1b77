"""Names of objectives, and the way from a name or a mapping to an objective and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from holdfast.errors import did_you_mean
from holdfast.objectives.adaptive import Adaptive
from holdfast.objectives.base import Objective
from holdfast.objectives.cpo import Cpo, CpoSimPo
from holdfast.objectives.dpo import Dpo
from holdfast.objectives.ipo import Ipo
from holdfast.objectives.orpo import Orpo
from holdfast.objectives.sft import SftOnChosen
from holdfast.objectives.simpo import SimPo
from holdfast.objectives.slic import Slic
from holdfast.objectives.slime import Slime
from holdfast.objectives.threshold import Threshold
from holdfast.objectives.token import Dft, FAlpha, Focal, HuberP, LogOneMinusP, Nll, Probability

_CLASSES: tuple[type[Objective], ...] = (
    Slime,
    Dpo,
    Ipo,
    SimPo,
    Cpo,
    CpoSimPo,
    Orpo,
    Slic,
    SftOnChosen,
    Nll,
    FAlpha,
    Probability,
    LogOneMinusP,
    Focal,
    HuberP,
    Threshold,
    Dft,
    Adaptive,
)
_BY_NAME: dict[str, type[Objective]] = {cls.name: cls for cls in _CLASSES}


def list_objectives(kind: str | None = None) -> tuple[str, ...]:
    """Names of the registered objectives: those on pairs, then those on tokens, each in alphabetical order.

    `kind` "pair" or "token" keeps one sort; anything else raises ValueError.
    """
    kinds = ("pair", "token")
    if kind is not None and kind not in kinds:
        raise ValueError(f"kind must be one of {', '.join(kinds)}, got {kind!r}")
    names = sorted(_BY_NAME, key=lambda name: (_BY_NAME[name].kind, name))
    return tuple(name for name in names if kind in (None, _BY_NAME[name].kind))


def objective_class(name: str) -> type[Objective]:
    """The class behind a name; ValueError names the nearest one when there is none."""
    if name not in _BY_NAME:
        raise ValueError(f"unknown objective {name!r}{did_you_mean(str(name), _BY_NAME)}")
    return _BY_NAME[name]


def get_objective(name: str, preset: str | None = None, **overrides: object) -> Objective:
    """Build an objective: its defaults, then the preset's values, then the overrides.

    Raises ValueError for an unknown name, preset or field (naming the nearest), or a value outside its
    domain.
    """
    cls = objective_class(name)
    if preset is not None and preset not in cls.presets:
        hint = did_you_mean(str(preset), cls.presets) if cls.presets else f" ({name} has no presets)"
        raise ValueError(f"{name}: unknown preset {preset!r}{hint}")
    known = [field.name for field in fields(cls)]
    for field in overrides:
        if field not in known:
            hint = did_you_mean(field, known) if known else f" ({name} has no hyperparameters)"
            raise ValueError(f"{name}: unknown hyperparameter {field!r}{hint}")
    values = {**(cls.presets[preset] if preset is not None else {}), **overrides}
    return cls(**values)


def resolve_objective(spec: str | Mapping[str, object] | Objective) -> Objective:
    """An objective from what a configuration may hold.

    `"slime"`, `{"name": "slime", "preset": "paper", "hard_margin": 1.2}`, or an objective, returned as it is.
    Raises ValueError as `get_objective` does, or for a mapping without a name.
    """
    if isinstance(spec, Objective):
        return spec
    if isinstance(spec, str):
        return get_objective(spec)
    if not isinstance(spec, Mapping):
        raise ValueError(f"an objective is a name, a mapping with a name, or an instance; got {spec!r}")
    values = dict(spec)
    name, preset = values.pop("name", None), values.pop("preset", None)
    if not isinstance(name, str):
        raise ValueError(
            f"an objective needs a name, one of {', '.join(list_objectives())}; got {values | {'name': name}}"
        )
    if preset is not None and not isinstance(preset, str):
        raise ValueError(f"{name}: preset must be a name, got {preset!r}")
    return get_objective(name, preset, **values)


def objective_spec(objective: Objective) -> dict[str, object]:
    """The mapping, of JSON's types only, from which `resolve_objective` builds an equal objective."""
    values = {field.name: getattr(objective, field.name) for field in fields(objective)}
    return {
        "name": objective.name,
        **{
            key: objective_spec(value) if isinstance(value, Objective) else value
            for key, value in values.items()
        },
    }
