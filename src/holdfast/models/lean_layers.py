"""Parts of transformers' decoder layers, computed with fewer copies: norms, gated MLPs, and inputs cast once.

- An RMS norm, and the product inside a gated MLP, keep their inputs alone for the backward.
- Float32 projections go by the faster of torch's libraries, see `ops.linear`.
- Under autocast every projection casts its input for itself and keeps that copy: three times in attention, twice in
  an MLP. Here the input is cast once, where it enters.

Values are those of the layers as they were, up to the order of rounding. What a class computes is found out by trying
it, never by its name; a class that computes anything else, or that something else has taken over already (Liger's
kernels, offloading), stays as it is.
"""

from __future__ import annotations

import copy
from functools import partial
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from holdfast.ops.gated_product import gated_product
from holdfast.ops.linear import linear, onednn_is_faster
from holdfast.ops.linear_logprob import as_product_sees
from holdfast.ops.rms_norm import rms_norm

GATED = ("gate_proj", "up_proj", "down_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj")
# What a forward that is not of the kind looked for may raise when it is tried.
TRIAL_FAULTS = (TypeError, RuntimeError, ValueError, AttributeError, KeyError, IndexError)
CLOSE = 1e-5  # float32 against float32; another formula is off by more than that in its first digit


def install_lean_layers(decoder: nn.Module) -> None:
    """Let the layers of `decoder` compute as said above, in place. Call once."""
    rules: dict[Any, Any] = {}
    for module in decoder.modules():
        if all(hasattr(module, name) for name in ATTENTION):
            module.register_forward_pre_hook(_cast_once, with_kwargs=True)
        if type(module) is nn.Linear and "forward" not in module.__dict__ and onednn_is_faster():
            module.forward = MethodType(_linear_forward, module)  # type: ignore[method-assign]
        if not _is_as_written(module):
            continue
        kind = type(module)
        if (eps := _norm_eps(module)) is not None:
            if (kind, eps) not in rules:
                rules[kind, eps] = _norm_rule(module, eps)
            if rules[kind, eps] is not None:
                module.forward = partial(_norm_forward, eps, rules[kind, eps], module)
        elif all(hasattr(module, name) for name in (*GATED, "act_fn")):
            if kind not in rules:
                rules[kind] = _is_gated(module)
            if rules[kind]:
                module.forward = MethodType(_gated_forward, module)


def _is_as_written(module: nn.Module) -> bool:
    """Whether the module's forward is the one that transformers gave its class."""
    return "forward" not in module.__dict__ and type(module).forward.__module__.startswith(
        "transformers.models."
    )


def _cast_once(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The projections' common input as their products will see it."""
    if args:
        args = (as_product_sees(args[0]), *args[1:])
    elif "hidden_states" in kwargs:
        kwargs = kwargs | {"hidden_states": as_product_sees(kwargs["hidden_states"])}
    return args, kwargs


def _agree(found: Any, expected: Tensor) -> bool:
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    return torch.allclose(found.double(), expected.double(), rtol=CLOSE, atol=CLOSE)


# ---- norms


class _NormRule(NamedTuple):
    offset: float  # added to the weight: 1 in Gemma's norms
    widens: bool  # whether a float32 weight makes a float32 result of half-precision states


def _norm_eps(module: Any) -> float | None:
    """What an RMS norm adds to the mean square; None for a module that cannot be one."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.ndim != 1 or len(list(module.parameters())) != 1:
        return None
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return eps if isinstance(eps, float) else None


def _norm_rule(module: Any, eps: float) -> _NormRule | None:
    """How the norm uses its weight; None where it computes something else."""
    generator = torch.Generator().manual_seed(0)
    # rows in which `eps` is everything, and rows in which it is nothing
    x = torch.randn(6, 8, generator=generator) * torch.logspace(-4, 2, 6)[:, None]
    weight = torch.rand(8, generator=generator) + 0.5
    try:
        found, half = (functional_call(module, {"weight": weight}, (t,)) for t in (x, x.bfloat16()))
    except TRIAL_FAULTS:
        return None
    for offset in (0.0, 1.0):
        if _agree(found, rms_norm(x, offset + weight, eps)):
            return _NormRule(offset, half.dtype == torch.float32)
    return None


def _norm_forward(eps: float, rule: _NormRule, module: Any, hidden_states: Tensor) -> Tensor:
    weight = module.weight
    if rule.offset:
        # in float32, where a weight near zero keeps its digits beside the one
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32)) + rule.offset
    return rms_norm(hidden_states, weight, eps, None if rule.widens else hidden_states.dtype)


# ---- projections


def _linear_forward(self: Any, input: Tensor) -> Tensor:
    return linear(input, self.weight, self.bias)


# ---- gated MLPs


def is_lean_mlp(module: nn.Module) -> bool:
    """Whether the module is a gated MLP that computes as said above."""
    return getattr(module.__dict__.get("forward"), "__func__", None) is _gated_forward


def _is_gated(module: Any) -> bool:
    """Whether the class computes `down_proj(act_fn(gate_proj(x)) * up_proj(x))`, tried with small projections."""
    if set(dict(module.named_children())) - {*GATED, "act_fn"}:
        return False
    small: Any = copy.copy(module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        projections = {
            name: nn.Linear(*size) for name, size in zip(GATED, ((4, 6), (4, 6), (6, 4)), strict=True)
        }
        x = torch.randn(3, 4)
    small._modules = {**module._modules, **projections}
    with torch.no_grad():
        try:
            found = type(module).forward(small, x)
        except TRIAL_FAULTS:
            return False
        return _agree(found, _gated_forward(small, x))


def _gated_forward(self: Any, x: Tensor) -> Tensor:
    x = as_product_sees(x)
    result: Tensor = self.down_proj(gated_product(self.gate_proj(x), self.up_proj(x), self.act_fn))
    return result
