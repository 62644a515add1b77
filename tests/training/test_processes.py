"""What processes share out, where there is one."""

from __future__ import annotations

import torch

from holdfast.training.processes import each_process, spread, whole


def test_one_process_has_what_it_has() -> None:
    assert each_process({"a": 1}) == [{"a": 1}]
    tensor = torch.arange(3.0, requires_grad=True)
    assert whole(tensor).requires_grad is False
    assert spread(tensor.detach(), tensor) is not None
