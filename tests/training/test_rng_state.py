"""Random number generators, taken and given back."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from holdfast.errors import CheckpointError
from holdfast.training.rng_state import derive_rng, devices_of, restore_rng, rng_state
from holdfast.training.state_files import load_state, save_state


def test_random_numbers_go_on_where_they_stood(tmp_path: Path) -> None:
    def draw() -> tuple[Any, ...]:
        return (
            *(random.random(), random.gauss(0, 1), np.random.random(), np.random.normal()),  # noqa: NPY002
            *(torch.rand(1).item(), torch.randn(1).item()),
        )

    draw()  # an odd number of normal ones: the other half of the pair is waiting
    save_state(rng_state([]), tmp_path / "rng")
    first, second = draw(), draw()
    restore_rng(load_state(tmp_path / "rng"), [])
    assert (draw(), draw()) == (first, second)
    with pytest.raises(CheckpointError, match="random numbers of 0 accelerator devices"):
        restore_rng(load_state(tmp_path / "rng"), [torch.device("cuda", 0)])


def test_derived_random_numbers_differ_between_processes_steps_and_seeds() -> None:
    drawn = set()
    for seed, step, rank, processes in ((0, 1, 0, 2), (0, 1, 1, 2), (0, 2, 0, 2), (1, 1, 0, 2), (0, 1, 0, 4)):
        derive_rng(seed, step, rank, processes)
        drawn.add(torch.rand(1).item())
        derive_rng(seed, step, rank, processes)
        assert torch.rand(1).item() in drawn
    assert len(drawn) == 5


def test_a_cpu_has_no_devices() -> None:
    assert devices_of(torch.nn.Linear(1, 1), torch.device("cpu")) == []
    assert devices_of(torch.nn.Linear(1, 1), torch.device("cuda", 1)) == [torch.device("cuda", 1)]
