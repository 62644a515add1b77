"""What does not fit in memory is halved: the same gradients, the same figures, nothing done twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from holdfast import PreferenceConfig, PreferenceTrainer, SFTConfig, SFTTrainer
from holdfast.errors import ModelError
from holdfast.training import preference_trainer, sft_trainer
from tests.training.conftest import rows

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB."


class Parameters(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.steps.append({name: p.detach().clone() for name, p in model.named_parameters()})


def train(
    kind: str, model: Any, tokenizer: Any, arguments: dict[str, Any], **settings: Any
) -> tuple[list[dict[str, torch.Tensor]], list[dict[str, Any]]]:
    trainer_class, config_class, objective = {
        "pairs": (PreferenceTrainer, PreferenceConfig, "slime"),
        "kept": (SFTTrainer, SFTConfig, {"name": "threshold", "low": 0.003}),
    }[kind]
    seen = Parameters()
    trainer = trainer_class(
        model=model.double(),
        args=config_class(
            objective=objective,
            max_steps=3,
            learning_rate=1e-2,
            per_device_train_batch_size=6,
            gradient_accumulation_steps=2,
            **arguments | settings,
        ),
        train_dataset=rows(24),
        processing_class=tokenizer,
        callbacks=[seen],
    )
    trainer.train()
    return seen.steps, [log for log in trainer.state.log_history if "loss" in log]


def fails_above(monkeypatch: pytest.MonkeyPatch, limit: int, late: bool) -> list[int]:
    """The device's memory, so to speak: a forward of more than `limit` rows fails; grows by each batch's rows.

    `late`: only from the third micro-batch on, in the backward, when some gradients are there already.
    """
    seen: list[int] = []

    def limited(module: Any, name: str) -> None:
        forward = getattr(module, name)

        class Fails(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, logps: torch.Tensor) -> torch.Tensor:
                return logps.clone()

            @staticmethod
            def backward(ctx: Any, *upstream: torch.Tensor) -> torch.Tensor:
                raise RuntimeError(MESSAGE)

        def wrapped(model: Any, batch: Any, *others: Any) -> Any:
            count = len(batch["row_index"])
            seen.append(count)
            if count > limit and not late:
                raise RuntimeError(MESSAGE)
            found = forward(model, batch, *others)
            if count <= limit or len(seen) <= 2:
                return found
            if isinstance(found, tuple):
                return Fails.apply(found[0]), found[1]
            return Fails.apply(found)

        monkeypatch.setattr(module, name, wrapped)

    limited(preference_trainer, "token_logprobs")
    limited(sft_trainer, "token_losses")
    return seen


@pytest.mark.parametrize("late", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("kind", ["pairs", "kept"])
def test_halves_give_the_same_training(
    kind: str,
    late: bool,
    model_of: Any,
    tokenizer: Any,
    arguments: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected, logs = train(kind, model_of(), tokenizer, arguments)
    seen = fails_above(monkeypatch, 2, late)
    got, got_logs = train(kind, model_of(), tokenizer, arguments, auto_find_batch_size=True)
    assert "cut into 2 parts" in caplog.text
    assert "cut into 4 parts" in caplog.text
    assert max(seen[-8:]) == 2
    assert len(got) == len(expected) == 3
    for mine, theirs in zip(got, expected, strict=True):
        for name, value in theirs.items():
            torch.testing.assert_close(mine[name], value, rtol=1e-9, atol=1e-12)
    for mine_log, theirs_log in zip(got_logs, logs, strict=True):
        assert mine_log["num_tokens"] == theirs_log["num_tokens"]
        assert mine_log["loss"] == pytest.approx(theirs_log["loss"], rel=1e-9)


def test_one_row_that_does_not_fit_is_an_error(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_above(monkeypatch, 0, late=False)
    with pytest.raises(ModelError, match="one row alone does not fit in memory: lower `max_length`"):
        train("pairs", model_of(), tokenizer, arguments, auto_find_batch_size=True)


def test_another_error_is_not_taken_for_it(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: Any, batch: Any) -> torch.Tensor:
        raise RuntimeError("shapes do not fit")

    trainer = PreferenceTrainer(
        model=model_of(),
        args=PreferenceConfig(max_steps=1, auto_find_batch_size=True, **arguments),
        train_dataset=rows(8),
        processing_class=tokenizer,
    )
    monkeypatch.setattr(preference_trainer, "token_logprobs", wrong)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        trainer.train()
