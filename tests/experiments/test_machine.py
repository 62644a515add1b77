"""What is said of this machine is what the functions that choose say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from holdfast.experiments import machine

CPU = torch.device("cpu")


def test_choices_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(machine, "widens", lambda dtype: dtype == torch.bfloat16)
    monkeypatch.setattr(machine, "half_is_slower", lambda: True)
    found = machine.choices(CPU)
    assert found["float32 products"] == "oneDNN"
    assert found["attention"].endswith("bfloat16 in float32")
    assert "no matrix units" in found["bfloat16"]
    assert found["LM head of pairs"] == "torch, a block of the vocabulary at a time"
    monkeypatch.setattr(machine, "onednn_is_faster", lambda: False)
    monkeypatch.setattr(machine, "widens", lambda dtype: False)
    found = machine.choices(CPU)
    assert found["float32 products"] == "torch's own choice"
    assert "float32" not in found["attention"]


def test_a_device_that_does_not_compute_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.why_not_computed(CPU) == ""

    def broken(*shape: int, device: torch.device) -> torch.Tensor:
        raise RuntimeError("no kernel image is\navailable")

    monkeypatch.setattr(machine.torch, "ones", broken)
    assert machine.why_not_computed(CPU) == "RuntimeError: no kernel image is available"


@pytest.mark.parametrize("stored", ["hf_secret", None])
def test_a_token_is_never_shown(stored: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "get_token", lambda: stored)  # by the environment, or a login
    assert machine.hub()["token"] is (stored is not None)


def test_a_drive_that_is_not_there_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_there", lambda path: None)
    assert machine.disks() == {}


def test_a_cache_that_is_not_there_yet_is_looked_for_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.constants, "HF_HUB_CACHE", str(tmp_path / "not" / "yet"))
    found = machine.disks()["hub's cache"]
    assert found["path"] == str(tmp_path / "not" / "yet")
    assert found["free"] > 0
