"""Training objectives: pure maths on log-probs, blind to models, tokenizers and configurations."""

from __future__ import annotations

from holdfast.objectives.adaptive import Adaptive
from holdfast.objectives.base import Objective
from holdfast.objectives.cpo import Cpo, CpoSimPo
from holdfast.objectives.dpo import Dpo
from holdfast.objectives.explain import Explanation, Symbol, explain
from holdfast.objectives.ipo import Ipo
from holdfast.objectives.orpo import Orpo
from holdfast.objectives.pairs import ObjectiveTerms, PairLogps, PairObjective, mean_logp, sum_logp
from holdfast.objectives.registry import get_objective, list_objectives, objective_spec, resolve_objective
from holdfast.objectives.sft import SftOnChosen
from holdfast.objectives.simpo import SimPo
from holdfast.objectives.slic import Slic
from holdfast.objectives.slime import Slime
from holdfast.objectives.threshold import Threshold
from holdfast.objectives.token import (
    Dft,
    FAlpha,
    Focal,
    HuberP,
    LogOneMinusP,
    Nll,
    Probability,
    TokenObjective,
)

__all__ = [
    "Adaptive",
    "Cpo",
    "CpoSimPo",
    "Dft",
    "Dpo",
    "Explanation",
    "FAlpha",
    "Focal",
    "HuberP",
    "Ipo",
    "LogOneMinusP",
    "Nll",
    "Objective",
    "ObjectiveTerms",
    "Orpo",
    "PairLogps",
    "PairObjective",
    "Probability",
    "SftOnChosen",
    "SimPo",
    "Slic",
    "Slime",
    "Symbol",
    "Threshold",
    "TokenObjective",
    "explain",
    "get_objective",
    "list_objectives",
    "mean_logp",
    "objective_spec",
    "resolve_objective",
    "sum_logp",
]
