"""The random number generators of one process, taken and given back."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import set_seed

from holdfast.errors import CheckpointError


def devices_of(model: nn.Module, device: torch.device) -> list[torch.device]:
    """Every device with a generator of its own that a process computes on, in order; none where that is the CPU."""
    found = {device, *(parameter.device for parameter in model.parameters())}
    return sorted((one for one in found if one.type not in ("cpu", "meta")), key=str)


def rng_state(devices: Iterable[torch.device]) -> dict[str, Any]:
    """Python's, NumPy's and PyTorch's generators, and those of the devices."""
    version, numbers, gauss = random.getstate()
    return {
        "python": (version, np.array(numbers, dtype=np.int64), gauss),
        "numpy": np.random.get_state(),  # noqa: NPY002 (the one that other libraries draw from)
        "cpu": torch.get_rng_state(),
        "devices": [_of_device(device) for device in devices],
    }


def restore_rng(state: Mapping[str, Any], devices: Sequence[torch.device]) -> None:
    """Give the generators the state they had.

    Raises:
        CheckpointError: the process computes on another number of devices than it did.
    """
    saved = state["devices"]
    if len(saved) != len(devices):
        raise CheckpointError(
            f"the checkpoint holds the random numbers of {len(saved)} accelerator devices a process, and this one "
            f"uses {len(devices)}"
        )
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["cpu"])
    for device, numbers in zip(devices, saved, strict=True):
        module = torch.get_device_module(device)
        module.set_rng_state(numbers) if device.type == "mps" else module.set_rng_state(numbers, device)


def derive_rng(seed: int, step: int, rank: int, processes: int) -> None:
    """Seed the generators for a run that goes on from `step` with another number of processes or devices."""
    digest = blake2b(f"{seed} {step} {rank} {processes}".encode(), digest_size=4).digest()
    set_seed(int.from_bytes(digest, "big"))


def _of_device(device: torch.device) -> torch.Tensor:
    module = torch.get_device_module(device)
    state: torch.Tensor = module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)
    return state
