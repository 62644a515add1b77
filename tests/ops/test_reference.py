"""The definition, against numbers worked by hand and the models it stands in for."""

from __future__ import annotations

import pytest
import torch

from holdfast.ops.reference import linear_logprob_reference

# Logits of the one token: 1·(1, 0) = 1, 1·0 + 2·1 = 2, 1 + 2 = 3.
HIDDEN = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
WEIGHT = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("target", "options", "expected"),
    [
        (2, {}, -0.4076059644443803),  # -log(1 + e^-1 + e^-2)
        (0, {}, -2.4076059644443803),  # two below it
        (
            2,
            {"bias": torch.tensor([1.0, 0.0, -2.0]).double()},
            -1.8619948040582512,
        ),  # (2, 2, 1): -log(1 + 2e)
        (2, {"logit_scale": 0.5}, -0.680269675290667),  # (.5, 1, 1.5): -log(1 + e^-.5 + e^-1)
        # Scale, then cap: 2·tanh((2, 4, 6) / 2) = (1.523188, 1.928055, 1.990110). The other order: -0.5499.
        (2, {"logit_scale": 2.0, "softcap": 2.0}, -0.9426449102300962),
    ],
)
def test_worked_by_hand(target: int, options: dict, expected: float) -> None:
    logprob = linear_logprob_reference(HIDDEN, WEIGHT, torch.tensor([target]), **options)
    assert logprob.shape == (1,)
    assert logprob.item() == pytest.approx(expected, abs=1e-7)


def test_gradients_worked_by_hand() -> None:
    """softmax(1, 2, 3) = p; by the logits, the log-probability of entry 2 changes by onehot(2) - p."""
    hidden, weight = HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    linear_logprob_reference(hidden, weight, torch.tensor([2])).backward()
    by_logits = torch.tensor([-0.09003057, -0.24472847, 0.33475904]).double()
    assert hidden.grad is not None
    assert weight.grad is not None
    torch.testing.assert_close(
        hidden.grad, torch.tensor([[0.24472847, 0.09003057]]).double(), atol=1e-7, rtol=0
    )
    torch.testing.assert_close(weight.grad, by_logits[:, None] * HIDDEN, atol=1e-7, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_softmax_is_float32_or_better(dtype: torch.dtype) -> None:
    logprob = linear_logprob_reference(HIDDEN.to(dtype), WEIGHT.to(dtype), torch.tensor([2]))
    assert logprob.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert logprob.item() == pytest.approx(
        -0.4076059644443803, abs=1e-7
    )  # logits 1, 2, 3 are exact in each dtype


SMALL = {
    "vocab_size": 37,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize(
    ("family", "setting", "options"),
    [
        ("Gemma2", {"final_logit_softcapping": 0.2}, {"softcap": 0.2}),
        ("Cohere", {"logit_scale": 3.0}, {"logit_scale": 3.0}),
        ("Granite", {"logits_scaling": 0.2}, {"logit_scale": 5.0}),
    ],
)
def test_agrees_with_the_models_whose_options_it_takes(family: str, setting: dict, options: dict) -> None:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SMALL, **setting)
    model = getattr(transformers, f"{family}ForCausalLM")(config).double().eval()
    ids = torch.randint(1, 37, (1, 9))
    with torch.no_grad():
        expected = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None]).squeeze(1)
        hidden = model.model(ids).last_hidden_state[0, :-1]
        weight = model.lm_head.weight
        logprob = linear_logprob_reference(hidden, weight, ids[0, 1:], **options)
        plain = linear_logprob_reference(hidden, weight, ids[0, 1:])
    torch.testing.assert_close(logprob, expected, atol=1e-12, rtol=0)
    assert (plain - expected).abs().max() > 1e-3  # or the option would not have been at work
