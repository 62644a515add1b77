"""Versions are held against what the metadata asks for, and nothing is guessed of what is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.experiments import installation
from holdfast.experiments.installation import Package

ASKED = [
    "torch>=2.6",
    "nowhere-to-be-found>=1",
    "types-nothing>=1; python_version < '3'",
    "bitsandbytes>=0.49; extra == 'quantized'",
    "trl==1.16.0; extra == 'bench'",
    "trl==1.17.0; extra == 'test'",
    "triton>=99; sys_platform == 'linux' and extra == 'test'",
    "holdfast[eval]; extra == 'test'",
]


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for, and what is installed."""
    there = {"torch": "2.5.1+cpu", "trl": "1.16.0", "triton": "3.2.0", "bitsandbytes": "0.48.0"}
    monkeypatch.setattr(installation, "requires", lambda name: ASKED)
    monkeypatch.setattr(installation, "installed", there.get)


def test_requirements_are_those_without_an_extra() -> None:
    assert installation.requirements() == [
        Package("torch", "2.5.1+cpu", ">=2.6", False),
        Package("nowhere-to-be-found", None, ">=1", False),
    ]


def test_extras_but_the_tests_own_hold_for_optional_packages() -> None:
    found = {package.name: package for package in installation.optional()}
    assert found["trl"].fits
    assert found["triton"] == Package("triton", "3.2.0", "", True)
    assert not found["bitsandbytes"].fits
    assert found["flash-attn"].version is None


def test_what_cannot_be_imported_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_another_system.py").write_text("raise OSError('libnothing.so:\\n no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    assert installation.why_not_imported("json") == ""
    assert installation.why_not_imported("of_another_system") == "OSError: libnothing.so: no such file"
