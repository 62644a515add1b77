"""TRL's own code as the other party: its loss functions are called, never copied.

TRL's trainers are not built (that takes a model and a dataset); their methods run on a bare namespace that
holds the settings those methods read, and on a model that returns the numbers of the test.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from trl import DPOTrainer
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer

from holdfast.objectives import Cpo, CpoSimPo, Dpo, Ipo, Orpo, PairLogps, PairObjective, SftOnChosen, SimPo
from holdfast.objectives.pairs import mean_logp

CPU = torch.device("cpu")
ACCELERATOR = SimpleNamespace(device=CPU, gather=lambda x: x, gather_for_metrics=lambda x: x)


def batch(seed: int, pairs: int = 4, longest: int = 7) -> PairLogps:
    generator = torch.Generator().manual_seed(seed)

    def side() -> tuple[Tensor, Tensor]:
        lengths = torch.randint(1, longest + 1, (pairs, 1), generator=generator)
        logps = -4 * torch.rand(pairs, longest, generator=generator, dtype=torch.float64)
        return logps.requires_grad_(), torch.arange(longest) < lengths

    (chosen, chosen_mask), (rejected, rejected_mask) = side(), side()
    references = -10 * torch.rand(2, pairs, generator=generator, dtype=torch.float64)
    return PairLogps(chosen, rejected, chosen_mask, rejected_mask, references[0], references[1])


def trl_dpo(
    pairs: PairLogps, loss_type: str, beta: float, label_smoothing: float = 0.0
) -> tuple[Tensor, dict]:
    """`DPOTrainer._compute_loss` on a model whose fused head returns these log-probs."""
    mask = torch.cat([pairs.chosen_mask, pairs.rejected_mask])
    logps = torch.where(mask, torch.cat([pairs.chosen, pairs.rejected]), 0.0)
    prompt = torch.zeros(len(mask), 1, dtype=torch.bool)  # one prompt token before each completion
    outputs = SimpleNamespace(
        log_probs=logps, entropy=torch.zeros_like(logps), mean_logits=torch.zeros_like(logps), is_top1=mask
    )
    inputs = {
        "input_ids": torch.zeros(len(mask), mask.shape[1] + 1, dtype=torch.long),
        "attention_mask": torch.cat([~prompt, mask], 1).long(),
        "completion_mask": torch.cat([prompt, mask], 1).long(),
        "ref_chosen_logps": pairs.reference_chosen,
        "ref_rejected_logps": pairs.reference_rejected,
    }
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=label_smoothing,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    loss = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)
    return loss, trainer._metrics["train"]


def assert_same(pairs: PairLogps, ours: Tensor, theirs: Tensor) -> None:
    """Equal losses, and equal gradients on every token."""
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    leaves = (pairs.chosen, pairs.rejected)
    for mine, other in zip(
        torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize(
    ("objective", "loss_type", "smoothing"),
    [
        (Dpo, "sigmoid", 0.0),
        (partial(Dpo, label_smoothing=0.2, variant="robust"), "robust", 0.2),
        (partial(Ipo, length_normalized=True), "ipo", 0.0),
    ],
    ids=["dpo", "robust", "ipo"],
)
def test_dpo_trainer(objective, loss_type: str, smoothing: float, beta: float, seed: int) -> None:
    pairs = batch(seed)
    theirs, _ = trl_dpo(pairs, loss_type, beta, smoothing)
    assert_same(pairs, objective(beta=beta)(pairs).loss.mean(), theirs)


def test_dpo_rewards_are_trls() -> None:
    pairs = batch(1)
    _, metrics = trl_dpo(pairs, "sigmoid", 0.1)
    terms = Dpo(beta=0.1)(pairs)
    assert terms.rewards_chosen.mean().item() == pytest.approx(metrics["rewards/chosen"][0])
    assert terms.rewards_rejected.mean().item() == pytest.approx(metrics["rewards/rejected"][0])
    assert terms.satisfied.double().mean().item() == pytest.approx(metrics["rewards/accuracies"][0])


def test_conservative_smoothing_is_cpos_on_log_ratios() -> None:
    """TRL's DPO has no cDPO; its CPO loss smooths in that form, here fed with log-ratios."""
    pairs = batch(2)
    ratios = [
        torch.where(pairs.chosen_mask, pairs.chosen, 0.0).sum(1) - pairs.reference_chosen,
        torch.where(pairs.rejected_mask, pairs.rejected, 0.0).sum(1) - pairs.reference_rejected,
    ]
    losses, _, _ = CPOTrainer.cpo_loss(cpo_settings("sigmoid", beta=0.3, label_smoothing=0.2), *ratios)
    assert_same(pairs, Dpo(beta=0.3, label_smoothing=0.2)(pairs).loss.mean(), losses.mean())


def test_ipo_summed_is_trls_on_completions_of_one_token() -> None:
    pairs = batch(3, longest=1)
    theirs, _ = trl_dpo(pairs, "ipo", 0.2)
    assert_same(pairs, Ipo(beta=0.2)(pairs).loss.mean(), theirs)


def test_ipo_summed_differs_from_trls_on_longer_ones() -> None:
    """What the notes of `ipo` warn of: unlike against unlike."""
    pairs = batch(3)
    theirs, _ = trl_dpo(pairs, "ipo", 0.2)
    assert abs(Ipo(beta=0.2)(pairs).loss.mean().item() - theirs.item()) > 0.1


def test_sft_is_trls_where_completions_are_equally_long() -> None:
    pairs = batch(4)
    pairs = pairs._replace(chosen_mask=torch.ones_like(pairs.chosen_mask))
    theirs, _ = trl_dpo(pairs, "sft", 0.1)
    torch.testing.assert_close(SftOnChosen()(pairs).loss.mean(), theirs)


def cpo_settings(
    loss_type: str, beta: float, gamma: float = 0.0, nll: float = 0.0, label_smoothing: float = 0.0
):
    """What CPOTrainer's methods read of their trainer."""
    settings = SimpleNamespace(
        accelerator=ACCELERATOR,
        alpha=0.0,
        loss_type=loss_type,
        beta=beta,
        simpo_gamma=gamma,
        cpo_alpha=nll,
        label_smoothing=label_smoothing,
        aux_loss_enabled=False,
        is_encoder_decoder=False,
        pad_token_id=0,
        concatenated_inputs=CPOTrainer.concatenated_inputs,
        get_batch_logps=CPOTrainer.get_batch_logps,
    )
    settings.cpo_loss = partial(CPOTrainer.cpo_loss, settings)
    settings.concatenated_forward = partial(CPOTrainer.concatenated_forward, settings)
    return settings


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        (SimPo(beta=2.0, gamma=1.0), cpo_settings("simpo", 2.0, gamma=1.0)),
        (SimPo(beta=2.5, gamma_beta_ratio=0.3), cpo_settings("simpo", 2.5, gamma=0.75)),
        (CpoSimPo(beta=2.0, gamma=0.2), cpo_settings("simpo", 2.0, gamma=0.2, nll=1.0)),
        (Cpo(beta=0.1, nll_weight=0.0), cpo_settings("sigmoid", 0.1)),
        (Cpo(beta=0.1), cpo_settings("sigmoid", 0.1, nll=1.0)),
        (Cpo(beta=0.3, nll_weight=0.5), cpo_settings("sigmoid", 0.3, nll=0.5)),
    ],
    ids=["simpo", "simpo-ratio", "cpo_simpo", "cpo-bare", "cpo", "cpo-half"],
)
@pytest.mark.parametrize("seed", range(2))
def test_cpo_trainer_from_logits_to_loss_and_metrics(objective: PairObjective, settings, seed: int) -> None:
    """Through TRL's forward, log-probs, NLL and loss.

    Chosen completions are equally long, because TRL pools the NLL over tokens; rejected ones are not.
    """
    generator = torch.Generator().manual_seed(seed)
    count, prompt, longest, vocabulary = 3, 2, 5, 11
    tokens = torch.randint(1, vocabulary, (2 * count, prompt + longest), generator=generator)
    lengths = torch.tensor([longest] * count + [2, 5, 3]).unsqueeze(1)
    mask = torch.arange(longest) < lengths
    labels = tokens.clone()
    labels[:, :prompt] = -100
    labels[:, prompt:][~mask] = -100
    logits = torch.randn(2 * count, prompt + longest, vocabulary, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    sides = {
        f"{side}_{key}": value[rows]
        for side, rows in (("chosen", slice(0, count)), ("rejected", slice(count, None)))
        for key, value in (
            ("input_ids", tokens),
            ("attention_mask", torch.ones_like(tokens)),
            ("labels", labels),
        )
    }
    theirs, metrics = CPOTrainer.get_batch_loss_metrics(
        settings, lambda *_, **__: SimpleNamespace(logits=logits), sides
    )

    targets = tokens[:, prompt:].unsqueeze(-1)
    logps = logits[:, prompt - 1 : -1].log_softmax(-1).gather(-1, targets).squeeze(-1)
    terms = objective(PairLogps(logps[:count], logps[count:], mask[:count], mask[count:]))
    ours = terms.loss.mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, theirs)),
        rtol=1e-10,
        atol=1e-13,
    )
    margin = (terms.rewards_chosen - terms.rewards_rejected).mean().item()
    assert margin == pytest.approx(metrics["rewards/margins"])


def test_orpo_odds_ratio() -> None:
    """TRL's odds ratio is in float32, hence the tolerance; its NLL covers the prompt: left out."""
    pairs = batch(5)
    means = (mean_logp(pairs.chosen, pairs.chosen_mask), mean_logp(pairs.rejected, pairs.rejected_mask))
    settings = SimpleNamespace(beta=0.25, accelerator=ACCELERATOR)
    losses, _, _, _, log_odds = ORPOTrainer.odds_ratio_loss(settings, *means)
    terms = Orpo(weight=0.25)(pairs)
    torch.testing.assert_close(terms.parts["odds_ratio"].float(), -losses, rtol=1e-5, atol=1e-6)
    ours = (terms.rewards_chosen - terms.rewards_rejected).mean().item()
    assert ours == pytest.approx(log_odds.item(), rel=1e-5)
