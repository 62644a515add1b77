"""An optimizer gets its state back as it was saved."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import Adafactor

from holdfast.errors import CheckpointError, ConfigError
from holdfast.training.optimizer_state import (
    gather_optimizer,
    parameter_names,
    restore_optimizer,
    spread_optimizer,
)


def stepped(dtype: torch.dtype) -> tuple[Any, torch.nn.Parameter]:
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 6).reshape(2, 3).to(dtype))
    optimizer = Adafactor([weight])
    weight.grad = torch.linspace(0.1, 0.7, 6).reshape(2, 3).to(dtype)
    optimizer.step()
    return optimizer, weight


def test_moments_are_not_rounded_to_their_parameters_format() -> None:
    optimizer, weight = stepped(torch.bfloat16)
    saved = copy.deepcopy(optimizer.state_dict())
    moment = saved["state"][0]["exp_avg_sq_row"]
    assert moment.dtype is torch.float32

    plain = Adafactor([weight])
    plain.load_state_dict(copy.deepcopy(saved))
    assert plain.state[weight]["exp_avg_sq_row"].dtype is torch.bfloat16  # why there is a function of our own

    fresh = Adafactor([weight])
    restore_optimizer(fresh, saved)
    assert fresh.state[weight]["exp_avg_sq_row"].dtype is torch.float32
    assert torch.equal(fresh.state[weight]["exp_avg_sq_row"], moment)


def test_each_parameter_gets_its_own() -> None:
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]

    def make() -> torch.optim.Optimizer:
        groups = [{"params": [weights[2]]}, {"params": weights[:2], "lr": 0.5}]
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9)

    optimizer = make()
    for n, weight in enumerate(weights):
        weight.grad = torch.full((2,), float(n)) if n != 1 else None  # one has no state
    optimizer.step()
    fresh = make()
    restore_optimizer(fresh, optimizer.state_dict())
    assert [fresh.state[weight]["momentum_buffer"].tolist() for weight in (weights[0], weights[2])] == [
        [0.0, 0.0],
        [2.0, 2.0],
    ]
    assert weights[1] not in fresh.state or fresh.state[weights[1]].get("momentum_buffer") is None
    assert [group["lr"] for group in fresh.param_groups] == [0.1, 0.5]


def test_the_state_of_other_parameters_is_refused() -> None:
    optimizer, _ = stepped(torch.float32)
    other = Adafactor([torch.nn.Parameter(torch.zeros(2)) for _ in range(2)])
    with pytest.raises(ValueError, match="doesn't match the size"):
        restore_optimizer(other, optimizer.state_dict())


# ---- by name


def adam_of(model: torch.nn.Module, names: list[str] | None = None) -> torch.optim.Optimizer:
    """An optimizer of two groups that has taken a step with every parameter."""
    parameters = dict(model.named_parameters())
    order = list(parameters) if names is None else names
    groups = [{"params": [parameters[name]], "weight_decay": at / 10} for at, name in enumerate(order)]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    for parameter in parameters.values():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return optimizer


def test_by_name_there_and_back() -> None:
    torch.manual_seed(0)
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    optimizer, fresh = adam_of(model), adam_of(other)
    state = gather_optimizer(optimizer, model)
    assert [group["params"] for group in state["groups"]] == [["weight"], ["bias"]]
    assert state["state"].keys() == {"weight", "bias"}
    spread_optimizer(lambda: state, fresh, other)
    expected, found = optimizer.state_dict(), fresh.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    for number in (0, 1):
        for key, value in expected["state"][number].items():
            assert torch.equal(found["state"][number][key], value)


def test_a_wrapped_model_has_the_same_names() -> None:
    model = torch.nn.Linear(3, 2)
    wrapped = torch.nn.ModuleDict({"_orig_mod": model})  # as a compiled model is
    assert parameter_names(adam_of(model), wrapped) == [["weight"], ["bias"]]


def test_of_other_parameters() -> None:
    model = torch.nn.Linear(3, 2)
    state = gather_optimizer(adam_of(model), model)
    more = torch.nn.Linear(3, 2)
    more.register_parameter("scale", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(CheckpointError, match="other parameters than are trained now: scale"):
        spread_optimizer(lambda: state, adam_of(more), more)
    with pytest.raises(CheckpointError, match="now: their groups and their order"):
        spread_optimizer(lambda: state, adam_of(model, ["bias", "weight"]), model)
    with pytest.raises(ConfigError, match="AdamW steps tensors that are no parameters of the model"):
        parameter_names(adam_of(model), torch.nn.Linear(3, 2))
