"""What the processes of a run leave to one of them. Two of them: see tests/faults/test_processes*.py."""

from __future__ import annotations

import pytest
import torch

from holdfast import ranks
from holdfast.ranks import is_main, on_cpu, once, once_a_node, together


def test_a_run_of_one_process() -> None:
    assert is_main()
    assert not together()
    assert once(lambda: 3) == once_a_node(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        once(lambda: 1 // 0)


@pytest.mark.parametrize(
    ("environment", "accelerator", "expected"),
    [
        ({}, None, False),
        ({}, "cuda", False),
        ({"WORLD_SIZE": "1"}, None, False),
        ({"WORLD_SIZE": "2"}, None, True),
        ({"WORLD_SIZE": "2"}, "mps", True),
        ({"WORLD_SIZE": "2"}, "cuda", False),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}, "cuda", True),
        ({"ACCELERATE_USE_CPU": "True"}, "cuda", True),
        ({"ACCELERATE_USE_CPU": "false"}, "cuda", False),
    ],
)
def test_where_processes_train(
    environment: dict[str, str], accelerator: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks.torch.accelerator, "is_available", lambda: accelerator is not None)
    monkeypatch.setattr(
        ranks.torch.accelerator, "current_accelerator", lambda: torch.device(accelerator or "cpu")
    )
    assert on_cpu() is expected
