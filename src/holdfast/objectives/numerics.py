"""Functions of log-probabilities that stay exact, with finite gradients, where the textbook form does not."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_2 = math.log(2.0)


def at_least_float32(values: Tensor) -> Tensor:
    """Half-precision values as float32; float32 and float64 as they are."""
    if not values.is_floating_point():
        raise ValueError(f"log-probs must be floating point, got {values.dtype}")
    return values.float() if values.dtype.itemsize < 4 else values


def softplus(x: Tensor) -> Tensor:
    """log(1 + eˣ), without the linear shortcut that torch's own takes above 20."""
    return -F.logsigmoid(-x)


def one_minus_exp(x: Tensor) -> Tensor:
    """1 − eˣ for x ≤ 0.

    Near zero `expm1` keeps the value exact; far from it `exp` keeps the gradient exact (torch differentiates
    `expm1` as its result plus one, which cancels).
    """
    return torch.where(x > -LOG_2, -torch.expm1(x), 1.0 - torch.exp(x))


def log_one_minus_exp(x: Tensor) -> Tensor:
    """log(1 − eˣ) for x < 0; −inf at 0 (Mächler, "Accurately computing log(1 − exp(−|a|))", 2012).

    The far form is given a harmless argument near zero: `where` alone would multiply its infinite gradient
    there by zero.
    """
    near_zero = x > -LOG_2
    near = torch.log(-torch.expm1(x))
    far = torch.log1p(-torch.exp(torch.where(near_zero, -1.0, x)))
    return torch.where(near_zero, near, far)


def below_zero(logps: Tensor) -> Tensor:
    """Log-probs held one rounding step of their dtype below 0, so that 1 − p is never zero.

    Beyond that step the gradient is zero: p = 1 is as far as the dtype can tell.
    """
    return logps.clamp(max=-torch.finfo(logps.dtype).eps)
