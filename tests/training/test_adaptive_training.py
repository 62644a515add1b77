"""SFTTrainer with an objective that follows capability: what α a step has, and what it must not depend on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from holdfast import SFTConfig, SFTTrainer, get_objective
from holdfast.data.information import InformativeTokens
from tests.training.conftest import rows

# a fixed beginning gives its own tokens away
DEMONSTRATIONS = [{"prompt": row["prompt"], "completion": "near the " + row["chosen"]} for row in rows(12)]
# A fresh model has p near 1/320 everywhere: the map's foot is put where that is a middle.
FOLLOWING = {
    "name": "adaptive",
    "weak": 0.0,
    "strong": 0.01,
    "highest": 1,
    "capability": 0.002,
    "half_life": 1,
}
CUTS = [(12, 1), (4, 3), (5, 3)]


def build(model: Any, tokenizer: Any, arguments: dict[str, Any], **settings: Any) -> Any:
    defaults = {"objective": FOLLOWING, "learning_rate": 1e-3, "per_device_train_batch_size": 12}
    return SFTTrainer(
        model=model,
        args=SFTConfig(**defaults | settings, **arguments),
        train_dataset=DEMONSTRATIONS,
        eval_dataset=DEMONSTRATIONS[:4],
        processing_class=tokenizer,
    )


def steps_of(trainer: Any) -> list[dict[str, Any]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_a_steps_alpha_comes_from_the_steps_before(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    """The first from the stated start; the next from p of the first's tokens that carry information."""
    model = model_of()
    trainer = build(model, tokenizer, arguments, max_steps=2)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(12)])
    informative = InformativeTokens.of(trainer.train_dataset)(batch)
    assert 0 < informative.sum() < len(informative), "the rule sets nothing aside: the test could not fail"
    p = []
    with torch.no_grad():
        for row in trainer.train_dataset:
            tokens = row["input_ids"]
            predicted = model(torch.tensor([tokens])).logits[0].softmax(-1)
            mask = row["completion_mask"]
            p += [predicted[t - 1, tokens[t]].item() for t in range(1, len(tokens)) if mask[t]]
    expected = torch.tensor(p)[informative].mean().item()
    trainer.train()
    first, second = steps_of(trainer)
    objective = get_objective(**FOLLOWING)
    assert first["capability"] == pytest.approx(0.002)
    assert first["alpha"] == pytest.approx(objective.alpha_at(0.002))  # type: ignore[attr-defined]
    assert second["capability"] == pytest.approx(expected, rel=1e-5)
    assert second["alpha"] == pytest.approx(objective.alpha_at(expected), rel=1e-5)  # type: ignore[attr-defined]
    assert 0.01 < second["alpha"] < 0.99


@pytest.mark.parametrize("cut", CUTS[1:], ids=str)
@pytest.mark.parametrize(
    "objective", [FOLLOWING, {"name": "threshold", "low": 0.003, "base": FOLLOWING}], ids=str
)
def test_the_cut_of_a_global_batch_does_not_matter(
    objective: Any, cut: tuple[int, int], model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    def run(size: int, accumulation: int) -> Any:
        trainer = build(
            model_of().double(),
            tokenizer,
            arguments,
            objective=objective,
            max_steps=4,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        trainer.train()
        return steps_of(trainer)

    found, expected = run(*cut), run(*CUTS[0])
    assert len({round(entry["alpha"], 6) for entry in expected}) > 2, (
        "α stands still: the test could not fail"
    )
    for mine, other in zip(found, expected, strict=True):
        for name in ("loss", "grad_norm", "capability", "alpha"):
            assert mine[name] == pytest.approx(other[name], rel=1e-6), name


def test_evaluation_does_not_move_it(model_of: Any, tokenizer: Any, arguments: dict[str, Any]) -> None:
    plain = build(model_of(), tokenizer, arguments, max_steps=4)
    watched = build(model_of(), tokenizer, arguments, max_steps=4, eval_strategy="steps", eval_steps=1)
    plain.train()
    watched.train()
    alphas = [[entry["alpha"] for entry in steps_of(trainer)] for trainer in (plain, watched)]
    assert alphas[0] == alphas[1]
    evaluations = [entry for entry in watched.state.log_history if "eval_loss" in entry]
    assert len(evaluations) == 4
    assert evaluations[0]["eval_alpha"] == pytest.approx(alphas[1][1])  # that of the step to come


def test_micro_batches_that_are_done_again_count_once(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second micro-batch does not fit at first: the step starts anew, in parts."""
    settings = {"max_steps": 3, "per_device_train_batch_size": 6, "gradient_accumulation_steps": 2}
    plain = build(model_of(), tokenizer, arguments, **settings)
    halved = build(model_of(), tokenizer, arguments, auto_find_batch_size=True, **settings)
    measure, calls = halved.measure, []

    def fails_once(*given: Any) -> Any:
        calls.append(1)
        found = measure(*given)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("no room")
        return found

    monkeypatch.setattr(halved, "measure", fails_once)
    plain.train()
    halved.train()
    for mine, other in zip(steps_of(halved), steps_of(plain), strict=True):
        assert mine["capability"] == pytest.approx(other["capability"], rel=1e-5)
    assert len(calls) > 6


def test_resumed_it_goes_on_as_if_never_stopped(
    model_of: Any, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    saving = arguments | {"save_strategy": "steps"}
    whole = build(model_of(), tokenizer, arguments, max_steps=6)
    whole.train()
    first = build(model_of(), tokenizer, saving, max_steps=6, save_steps=3)
    first.train()
    again = build(model_of(), tokenizer, saving, max_steps=6, save_steps=3)
    again.train(resume_from_checkpoint=f"{arguments['output_dir']}/checkpoint-3")
    expected, found = steps_of(whole), steps_of(again)
    assert [entry["step"] for entry in found] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "capability", "alpha"):
        assert [entry[name] for entry in found] == [entry[name] for entry in expected]


def test_no_training_rows_no_tracker(model_of: Any, tokenizer: Any, arguments: dict[str, Any]) -> None:
    """Evaluation alone: the objective stays at the capability it was given."""
    trainer = SFTTrainer(
        model=model_of(),
        args=SFTConfig(objective=FOLLOWING, **arguments),
        eval_dataset=DEMONSTRATIONS,
        processing_class=tokenizer,
    )
    found = trainer.evaluate()
    assert "eval_alpha" not in found
    assert found["eval_loss"] > 0
