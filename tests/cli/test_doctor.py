"""`holdfast doctor`: what it prints, what it warns of, and when it ends with 2."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from holdfast.cli import doctor
from holdfast.cli.main import app
from holdfast.experiments import installation, machine
from holdfast.experiments.installation import Package

SOUND: dict[str, Any] = {
    "cpu": {"name": "a CPU", "cores": 8, "told": True, "threads": 8, "instructions": "AVX2"},
    "gpus": [{"name": "NVIDIA X", "memory": 80 * 10**9, "capability": "9.0"}],
    "mps": False,
    "nvidia_driver": True,
    "torch_cuda": "12.8",
    "device": "cuda:0",
    "device_refuses": "",
    "choices": {"LM head of pairs": "Triton kernel"},
    "disks": {"current folder": {"path": "/runs", "free": 10**12}},
    "hub": {"token": True, "offline": False},
    "optional": {"triton": "3.9.0"},
}


def whats(found: dict[str, Any]) -> str:
    return "\n".join(finding["what"] for finding in doctor.machine_findings(found))


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is broken in two, whatever terminal the tests run in."""
    monkeypatch.setenv("COLUMNS", "300")


def test_a_sound_machine_has_no_findings() -> None:
    assert whats(SOUND) == ""


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"gpus": [], "device": "cpu", "torch_cuda": None}, "this torch was built without CUDA"),
        ({"gpus": [], "device": "cpu"}, "torch, built for CUDA 12.8, finds none"),
        ({"gpus": [], "device": "cpu", "nvidia_driver": False}, "no GPU to train on"),
        ({"device": "cpu", "cpu": SOUND["cpu"] | {"threads": 1}}, "torch computes with 1 threads on 8 cores"),
        (
            {"gpus": [SOUND["gpus"][0] | {"capability": "7.5"}]},
            "compute capability 7.5: no units for bfloat16",
        ),
        ({"disks": {"current folder": {"path": "/runs", "free": 10**9}}}, "1.0 GB are free"),
        ({"hub": {"token": False, "offline": True}}, "HF_HUB_OFFLINE"),
        ({"device_refuses": "RuntimeError: no kernel image"}, "cuda:0 does not compute"),
    ],
)
def test_each_finding(changed: dict[str, Any], what: str) -> None:
    assert what in whats(SOUND | changed)


def test_a_thread_for_each_two_cores_is_torchs_own_choice() -> None:
    assert "threads" not in whats(
        SOUND | {"device": "cpu", "cpu": SOUND["cpu"] | {"told": False, "threads": 4}}
    )


def test_a_device_that_does_not_compute_is_asked_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "why_not_computed", lambda device: "RuntimeError: no driver")
    monkeypatch.setattr(machine, "gpus", lambda: pytest.fail("asked a broken driver"))
    found = doctor.examined()
    assert [one["what"] for one in found["findings"] if one["kind"] == doctor.IMPOSSIBLE] == [
        f"{found['device']} does not compute (RuntimeError: no driver)"
    ]


def test_packages_below_their_floor_are_warned_of_and_missing_ones_end_it() -> None:
    old, missing = Package("torch", "2.5.0", ">=2.6", False), Package("peft", None, ">=0.21", False)
    fitting = Package("numpy", "2.1", ">=2.0", True)
    found = list(doctor.package_findings([old, missing, fitting], [missing]))
    assert [(finding["kind"], finding["what"]) for finding in found] == [
        (doctor.WARNING, "torch is 2.5.0; >=2.6 is asked for"),
        (doctor.IMPOSSIBLE, "peft is not installed"),
    ]
    assert found[0]["mend"] == "pip install 'torch>=2.6'"


def test_this_machine_as_text_and_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(
        machine, "why_not_computed", lambda device: ""
    )  # a GPU may be full, and that is no fault here
    absent = {name: Package(name, None, "", False) for name in installation.OPTIONAL}
    monkeypatch.setattr(installation, "optional", lambda: list(absent.values()))
    shown = CliRunner().invoke(app, ["doctor"], catch_exceptions=False)
    told = CliRunner().invoke(app, ["doctor", "--json"], catch_exceptions=False)
    assert (shown.exit_code, told.exit_code) == (0, 0)
    assert "hf_secret" not in shown.stdout + told.stdout
    found = json.loads(told.stdout)
    assert found["versions"].keys() == {"holdfast", "python", *installation.NEEDED}
    assert found["hub"]["token"] is True
    for words in (
        found["versions"]["torch"],
        found["choices"]["LM head of pairs"],
        "pip install 'holdfast[quantized]'",
    ):
        assert words in shown.stdout
    assert all(finding["mend"] for finding in found["findings"])


def test_a_library_that_cannot_be_imported_is_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "why_not_imported", lambda name: "OSError: x" if name == "peft" else "")
    result = CliRunner().invoke(app, ["doctor"], catch_exceptions=False)
    assert result.exit_code == 2
    assert "training is impossible: peft cannot be imported (OSError: x)" in result.stdout
    assert "Devices" not in result.stdout
