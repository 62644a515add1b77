"""holdfast: post-train language models without unlearning. The public names, nothing else."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.objectives.registry import get_objective, list_objectives
    from holdfast.ops.linear_logprob import linear_logprob
    from holdfast.training.config import PreferenceConfig, SFTConfig
    from holdfast.training.preference_trainer import PreferenceTrainer
    from holdfast.training.sft_trainer import SFTTrainer

_HOME = {
    "PreferenceTrainer": "holdfast.training.preference_trainer",
    "PreferenceConfig": "holdfast.training.config",
    "SFTTrainer": "holdfast.training.sft_trainer",
    "SFTConfig": "holdfast.training.config",
    "get_objective": "holdfast.objectives.registry",
    "list_objectives": "holdfast.objectives.registry",
    "linear_logprob": "holdfast.ops.linear_logprob",
}

__version__ = "0.1.0"
__all__ = [
    "PreferenceConfig",
    "PreferenceTrainer",
    "SFTConfig",
    "SFTTrainer",
    "get_objective",
    "linear_logprob",
    "list_objectives",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for, so that `import holdfast` costs nothing."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'holdfast' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
