"""The gradient of a global batch does not depend on how it is cut into micro-batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from holdfast import PreferenceConfig, PreferenceTrainer, SFTConfig, SFTTrainer
from tests.training.conftest import rows

# 12 rows a step however they are cut; the last is ragged: 5, 5 and 2
CUTS = [(12, 1), (4, 3), (1, 12), (5, 3)]


class Gradients(TrainerCallback):
    """Keeps the gradients each optimizer step is about to use."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def run(trainer_class: Any, config_class: Any, model: Any, tokenizer: Any, **settings: Any) -> Any:
    gradients = Gradients()
    trainer = trainer_class(
        model=model.double(),
        args=config_class(max_steps=1, learning_rate=1e-3, max_grad_norm=0.0, **settings),
        train_dataset=rows(12),
        processing_class=tokenizer,
        callbacks=[gradients],
    )
    output = trainer.train()
    return gradients.steps[0], output.training_loss, trainer.state.log_history[0]


@pytest.mark.parametrize("cut", CUTS[1:], ids=str)
@pytest.mark.parametrize(
    "objective", ["slime", {"name": "slime", "stabilizer_reduction": "sequence"}, "dpo", "orpo"]
)
def test_preference_gradients(
    objective: Any, cut: tuple[int, int], model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    def cut_into(size: int, accumulation: int) -> Any:
        return run(
            PreferenceTrainer,
            PreferenceConfig,
            model_of(),
            tokenizer,
            objective=objective,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            **arguments,
        )

    _assert_same(cut_into(*cut), cut_into(*CUTS[0]))


@pytest.mark.parametrize("cut", CUTS[1:], ids=str)
@pytest.mark.parametrize(
    "objective",
    ["nll", {"name": "threshold", "low": 0.003}, {"name": "threshold", "low": 0.003, "normalize": "all"}],
    ids=["nll", "kept", "all"],
)
def test_supervised_gradients(
    objective: Any, cut: tuple[int, int], model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    def cut_into(size: int, accumulation: int) -> Any:
        return run(
            SFTTrainer,
            SFTConfig,
            model_of(),
            tokenizer,
            objective=objective,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            **arguments,
        )

    found, expected = cut_into(*cut), cut_into(*CUTS[0])
    if objective != "nll":
        assert 0.1 < expected[2]["tokens/kept"] < 0.9, (
            "the threshold keeps all or nothing: the test could not fail"
        )
    _assert_same(found, expected)


def test_kept_normalisation_divides_by_kept_tokens(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    """`kept` and `all` differ by exactly the share of tokens kept."""

    def gradients(normalize: str) -> Any:
        objective = {"name": "threshold", "low": 0.003, "normalize": normalize}
        return run(
            SFTTrainer,
            SFTConfig,
            model_of(),
            tokenizer,
            objective=objective,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=3,
            **arguments,
        )

    kept, every = gradients("kept"), gradients("all")
    share = kept[2]["tokens/kept"]
    for name, gradient in kept[0].items():
        torch.testing.assert_close(gradient * share, every[0][name], rtol=1e-6, atol=1e-12)
    assert kept[1] * share == pytest.approx(every[1], rel=1e-6)


def _assert_same(found: Any, expected: Any) -> None:
    for name, gradient in expected[0].items():
        scale = gradient.abs().max().clamp(min=1e-3)
        # the families' norms compute in float32 whatever the model's dtype
        torch.testing.assert_close(found[0][name] / scale, gradient / scale, rtol=0, atol=2e-5, msg=name)
    assert found[1] == pytest.approx(expected[1], rel=1e-6)
    assert found[2]["loss"] == pytest.approx(expected[2]["loss"], rel=1e-6)
    # a policy that is its own reference has margins of exactly zero, give or take rounding: nothing to count
    edge = (
        {"rewards/accuracies", "margin/satisfied"}
        if abs(expected[2].get("rewards/margins", 1)) < 1e-6
        else set()
    )
    for name in expected[2].keys() - {"tokens_per_second", "grad_norm", "learning_rate", "epoch"} - edge:
        assert found[2][name] == pytest.approx(expected[2][name], rel=1e-5, abs=1e-6), name
