"""What the tests of the log-prob forward share: tiny models, random pairs, and the truth about them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from holdfast.data.collate import Batch
from holdfast.models.adapters import attach_adapter, lora_config
from holdfast.models.tiny import tiny_model
from holdfast.models.token_logprobs import install_logprob_forward

VOCAB = 61
FAMILIES = ["llama", "qwen3", "gemma3", "gemma2"]
LENGTHS = [(9, 5, 7), (1, 1, 1), (4, 12, 1), (13, 1, 11)]


class Float64Throughout(TorchFunctionMode):
    """Casts to float32 become casts to float64.

    The families' norms (and Gemma 2's softmax) compute in float32 whatever the model's dtype, and a sum of
    gradients taken in another order differs there by 1e-7: without this the test could not look past that.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        return (Tensor.double if func is Tensor.float else func)(*args, **kwargs)


# The arguments `shared_prefix, padding_free` of the collator.
FORMS = {"plain": (False, False), "shared": (True, False), "flat": (True, True), "flat plain": (False, True)}
# Soft-capped attention (Gemma 2) runs eager, which takes no flattened rows.
FLAT_FAMILIES = ["llama", "qwen3", "gemma3"]
CASES = [(family, form) for family in FAMILIES for form in FORMS if family != "gemma2" or not FORMS[form][1]]


def examples(lengths: list[tuple[int, int, int]], seed: int = 0) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> list[int]:
        return torch.randint(0, VOCAB, (count,), generator=generator).tolist()

    return [
        {"prompt_ids": tokens(p), "chosen_ids": tokens(c), "rejected_ids": tokens(r), "row_index": n}
        for n, (p, c, r) in enumerate(lengths)
    ]


def build(family: str, adapter: bool = False, **overrides: Any) -> nn.Module:
    model: Any = tiny_model(family, VOCAB, dtype=torch.float64, **overrides)
    if adapter:
        model = attach_adapter(model, lora_config(model, rank=4, alpha=8))
        # LoRA starts at a delta of zero: give it one, or the test could not see it
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    install_logprob_forward(model)
    return model.double()


def independent(model: nn.Module, rows: list[dict[str, Any]]) -> list[tuple[Tensor, Tensor]]:
    """Each completion alone in its own unpadded row, through the model's own logits."""

    def logps(prompt: list[int], completion: list[int]) -> Tensor:
        ids = torch.tensor([[*prompt, *completion]])
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]

    return [
        (logps(r["prompt_ids"], r["chosen_ids"]), logps(r["prompt_ids"], r["rejected_ids"])) for r in rows
    ]


def per_pair(logps: Tensor, batch: Batch) -> list[tuple[Tensor, Tensor]]:
    return [
        (logps[chosen[chosen >= 0]], logps[rejected[rejected >= 0]])
        for chosen, rejected in zip(batch["chosen_slots"], batch["rejected_slots"], strict=True)
    ]


def loss_and_gradients(
    model: nn.Module, pairs: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss that weighs every token differently, so that no mistake can cancel out."""
    loss = sum(
        (c * torch.linspace(0.5, 1.5, len(c), dtype=c.dtype, device=c.device)).sum()
        - (r.square() * torch.linspace(1.5, 0.5, len(r), dtype=r.dtype, device=r.device)).sum()
        for c, r in pairs
    )
    assert isinstance(loss, Tensor)
    model.zero_grad()
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def assert_same(
    a: tuple[Tensor, dict[str, Tensor]], b: tuple[Tensor, dict[str, Tensor]], tolerance: float
) -> None:
    torch.testing.assert_close(a[0], b[0], rtol=tolerance, atol=tolerance)
    assert a[1].keys() == b[1].keys()
    for name in a[1]:
        scale = b[1][name].abs().max().clamp(min=1.0)
        torch.testing.assert_close(
            a[1][name] / scale, b[1][name] / scale, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
