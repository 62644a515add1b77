"""Probabilities of 0 and 1, logits of ±10,000, completions of one token, bfloat16: through the trainers, for every
registered objective, finite and as float64 has it."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from holdfast import (
    PreferenceConfig,
    PreferenceTrainer,
    SFTConfig,
    SFTTrainer,
    list_objectives,
)
from holdfast.models.tiny import tiny_model
from holdfast.objectives.pairs import PairLogps
from holdfast.objectives.registry import resolve_objective
from holdfast.training import preference_trainer, sft_trainer
from holdfast.training.preference_trainer import pair_logps
from holdfast.training.preparation import Prepared
from tests.faults.runs import shared_tokenizer

HIDDEN, VOCABULARY, GREATEST = 32, 280, 1e4
PRECISIONS = ["float32", "bfloat16"]

PAIRS: list[Any] = [
    *list_objectives("pair"),
    {"name": "slime", "stabilizer_reduction": "sequence", "use_soft_margin": False},
    {"name": "slime", "use_hard_margin": False, "exponent": 1.0},
    {"name": "slime", "anchor_weight": 0, "stabilizer_weight": 0},
    {"name": "dpo", "label_smoothing": 0.1, "variant": "robust"},
    {"name": "ipo", "length_normalized": True},
    {"name": "cpo", "nll_reduction": "sum"},
]
TOKENS: list[Any] = [
    *list_objectives("token"),
    {"name": "f_alpha", "alpha": 0.1},
    {"name": "f_alpha", "alpha": 5},
    {"name": "focal", "gamma": 0.5},
    {"name": "threshold", "low": 0.2},
    {"name": "threshold", "base": "log_one_minus_p", "high": 0.5, "normalize": "all"},
]


def model_of_extremes(scale: float) -> Any:
    """A model whose logits are about ±`scale`; its head is its own."""
    model = tiny_model("llama", VOCABULARY, hidden_size=HIDDEN, seed=3)
    head = torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        model.lm_head.weight.copy_(head * scale / HIDDEN**0.5)
    return model


@torch.no_grad()
def completions(model: Any, prompts: Tensor) -> dict[str, list[list[int]]]:
    """For each prompt: what the model is certain of, what it has ruled out, both, and any token; most of one token."""
    logits = model(prompts).logits[:, -1]
    assert logits.abs().max() > GREATEST
    best, worst = logits.argmax(-1).tolist(), logits.argmin(-1).tolist()
    return {
        "certain": [[token] for token in best],
        "ruled out": [[token] for token in worst],
        "both": [[b, w, 5] for b, w in zip(best, worst, strict=True)],
        "one other": [[(b + 7) % VOCABULARY] for b in best],
    }


def prepared(rows: list[dict[str, Any]]) -> Prepared:
    numbered = [row | {"row_index": n, "row_id": str(n)} for n, row in enumerate(rows)]
    return Prepared(datasets.Dataset.from_list(numbered), {}, (), VOCABULARY - 1)


def rows_of_extremes(kind: str, model: Any) -> Prepared:
    prompts = torch.randint(0, VOCABULARY, (4, 3), generator=torch.Generator().manual_seed(5))
    found = completions(model, prompts)
    if kind == "token":
        return prepared(
            [
                {"input_ids": prompt + tokens, "completion_mask": [False] * 3 + [True] * len(tokens)}
                for sort in found.values()
                for prompt, tokens in zip(prompts.tolist(), sort, strict=True)
            ]
        )
    return prepared(
        [
            {"prompt_ids": prompt, "chosen_ids": found[chosen][n], "rejected_ids": found[rejected][n]}
            for n, prompt in enumerate(prompts.tolist())
            for chosen in found
            for rejected in found
            if chosen != rejected
        ]
    )


class Gradients(TrainerCallback):
    """What the optimizer is about to use."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        self.found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def one_step(
    kind: str,
    objective: Any,
    precision: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    extreme: Any,
    rows: Prepared,
) -> tuple[dict[str, Any], dict[str, Tensor], list[tuple[Tensor, Any]], Any]:
    """Log, gradients, and the log-probs of the micro-batches, of one step.

    The trainer is made with a milder model, so that a reference differs from the policy; the extremes come after.
    """
    mild = model_of_extremes(1.0)
    trainer_class, config_class = (
        (PreferenceTrainer, PreferenceConfig) if kind == "pair" else (SFTTrainer, SFTConfig)
    )
    gradients, seen = Gradients(), []
    trainer = trainer_class(
        mild.double() if precision == "float64" else mild,
        config_class(
            output_dir=str(folder / precision),
            objective=objective,
            use_cpu=True,
            bf16=precision == "bfloat16",
            disable_tqdm=True,
            save_strategy="no",
            max_steps=1,
            max_grad_norm=0.0,
            per_device_train_batch_size=12,
            gradient_accumulation_steps=4 if kind == "pair" else 2,
            logging_steps=1,
            train_sampling_strategy="sequential",
            cache_dir=str(folder / "cache"),
            dataset_num_proc=1,
        ),
        rows,
        processing_class=shared_tokenizer(),
        callbacks=[gradients],
    )
    trainer.model.load_state_dict(extreme.state_dict())
    module, name = (preference_trainer, "token_logprobs") if kind == "pair" else (sft_trainer, "token_losses")
    forward = getattr(module, name)

    def noting(model: Any, batch: Any, *others: Any) -> Any:
        found = forward(model, batch, *others)
        seen.append(((found if kind == "pair" else found[1]).detach(), batch))
        return found

    with monkeypatch.context() as patched:
        patched.setattr(module, name, noting)
        trainer.train()  # at a loss or a gradient that is not finite, it would raise
    return trainer.state.log_history[0], gradients.found, seen, trainer


def loss_in_float64(kind: str, objective: Any, seen: list[tuple[Tensor, Any]]) -> float:
    """The loss of the global batch, from the log-probs as they came out of the model."""
    resolved = resolve_objective(objective)
    # p = 1 is as far as float32 can tell: the odds, and log(1 - p), are those of its last step below (see their notes)
    seen = [(logps.double().clamp(max=-torch.finfo(torch.float32).eps), batch) for logps, batch in seen]
    if kind == "token":
        logps = torch.cat([logps for logps, _ in seen])
        kept = resolved.kept(logps)
        total = torch.where(kept, resolved(logps), 0.0).sum()
        return (total / (kept.sum() if resolved.normalization == "kept" else len(logps))).item()
    rejected = sum(int((batch["rejected_slots"] >= 0).sum()) for _, batch in seen)
    pairs = sum(len(batch["rejected_slots"]) for _, batch in seen)
    losses = [resolved(pair_logps(logps, batch, rejected / pairs)).loss for logps, batch in seen]
    return torch.cat(losses).mean().item()


CASES = [
    *(pytest.param("pair", objective, id=f"pair-{objective}") for objective in PAIRS),
    *(pytest.param("token", objective, id=f"token-{objective}") for objective in TOKENS),
]


@pytest.mark.parametrize(("kind", "objective"), CASES)
def test_extremes(kind: str, objective: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extreme = model_of_extremes(GREATEST)
    rows = rows_of_extremes(kind, extreme)
    _, exact, exact_seen, _ = one_step(
        kind, objective, "float64", tmp_path, monkeypatch, copy.deepcopy(extreme).double(), rows
    )
    every = torch.cat([logps for logps, _ in exact_seen])
    assert (every > -1e-30).any(), "no token is certain"
    assert (every < -GREATEST).any(), "no token is ruled out"
    # bounded objectives have no gradient here but what rounding leaves
    greatest = max(gradient.abs().max() for gradient in exact.values()).clamp(min=1e-3)
    expected = loss_in_float64(kind, objective, exact_seen)
    for precision in PRECISIONS:
        log, gradients, seen, trainer = one_step(
            kind, objective, precision, tmp_path, monkeypatch, copy.deepcopy(extreme), rows
        )
        assert trainer.state.global_step == 1
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
        # The maths on log-probs, whatever the model has made of them.
        assert log["loss"] == pytest.approx(loss_in_float64(kind, objective, seen), rel=1e-5, abs=1e-6)
        # And all of it: bfloat16 has three digits.
        digits = 1e-3 if precision == "float32" else 0.2
        assert log["loss"] == pytest.approx(expected, rel=digits, abs=digits)
        if precision == "float32":
            for name, gradient in gradients.items():
                torch.testing.assert_close(
                    gradient / greatest, exact[name].float() / greatest, rtol=1e-2, atol=1e-3, msg=name
                )


NOTHING = [[-1.0, -torch.inf], [-torch.inf, -torch.inf], [-1.0, -2.0]]


@pytest.mark.parametrize("objective", [*PAIRS, {"name": "slime", "stabilizer_weight": 0}], ids=str)
def test_a_log_prob_of_minus_infinity_on_pairs(objective: Any) -> None:
    """A finite loss has finite gradients; any other is the guard's to report: nothing half broken is trained on."""
    mask, reference = torch.ones(1, 2, dtype=torch.bool), torch.tensor([-3.0])
    outcomes = set()
    for left, right in itertools.product(NOTHING, NOTHING):
        chosen, rejected = (torch.tensor([side], requires_grad=True) for side in (left, right))
        pairs = PairLogps(chosen, rejected, mask, mask, reference, reference)
        loss = resolve_objective(objective)(pairs).loss.sum()
        found = torch.autograd.grad(loss, (chosen, rejected), allow_unused=True)
        assert not loss.isfinite() or all(g is None or g.isfinite().all() for g in found), (left, right)
        outcomes.add(bool(loss.isfinite()))
    assert outcomes == {True, False}


@pytest.mark.parametrize("objective", TOKENS, ids=str)
def test_a_log_prob_of_minus_infinity_on_tokens(objective: Any) -> None:
    logps = torch.tensor([-torch.inf], requires_grad=True)
    loss = resolve_objective(objective)(logps).sum()
    (gradient,) = torch.autograd.grad(loss, logps)
    assert loss.item() == torch.inf or (loss.isfinite() and gradient.isfinite().all())
