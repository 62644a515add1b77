"""Which packages are installed, held against what the package's own metadata asks for."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

OWN = "holdfast"
# Without these nothing is trained; each is imported, for one that is installed may still not load.
NEEDED = ("torch", "transformers", "accelerate", "peft", "datasets")
# What else is used where it is installed: package -> (what for, how to install it).
OPTIONAL = {
    "bitsandbytes": ("weights in 4 and 8 bits, 8-bit optimizers", "pip install 'holdfast[quantized]'"),
    "triton": ("the LM head's kernel on NVIDIA GPUs", "pip install triton"),
    "flash-attn": (
        "attention: flash_attention_2, on NVIDIA GPUs",
        "pip install flash-attn --no-build-isolation",
    ),
    "vllm": ("answers of evaluations by vLLM", "pip install 'holdfast[vllm]'"),
    "lm-eval": ("holdfast eval lm_eval", "pip install 'holdfast[lm-eval]'"),
    "math-verify": ("holdfast eval maths", "pip install 'holdfast[eval]'"),
    "trl": ("benchmarks against TRL", "pip install 'holdfast[bench]'"),
}


@dataclass(frozen=True)
class Package:
    """One package.

    Attributes:
        version: None where it is not installed.
        wanted: the versions that are asked for, `>=2.6`; empty where any will do.
        fits: whether the version is one of them.
    """

    name: str
    version: str | None
    wanted: str
    fits: bool


def versions() -> dict[str, str]:
    """Of this package and of Python."""
    return {OWN: installed(OWN) or "not installed as a package", "python": platform.python_version()}


def requirements() -> list[Package]:
    """What the package cannot do without; none where it is not installed as a package, and has no metadata."""
    return [_held(one) for one in _asked_for() if one.marker is None or one.marker.evaluate({"extra": ""})]


def optional() -> list[Package]:
    """`OPTIONAL`, each against what an extra asks for, if one does."""
    # but for the tests' own: they ask for more than what they test
    tests = {"extra": "test", "sys_platform": "linux"}
    extras = {
        one.name: one for one in _asked_for() if one.marker is not None and not one.marker.evaluate(tests)
    }
    return [_held(extras.get(name, Requirement(name))) for name in OPTIONAL]


def why_not_imported(name: str) -> str:
    """What importing a package says against it; empty where it can be imported."""
    try:
        import_module(name)
    except (
        Exception
    ) as error:  # a library for another system, or another version of a third package, in any way
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""


def installed(name: str) -> str | None:
    """A package's version; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _asked_for() -> list[Requirement]:
    """The package's own metadata; what it asks of itself (`holdfast[eval]`) is left out."""
    try:
        lines = requires(OWN) or []
    except PackageNotFoundError:
        return []
    return [one for one in map(Requirement, lines) if one.name != OWN]


def _held(wanted: Requirement) -> Package:
    found = installed(wanted.name)
    fits = found is not None and wanted.specifier.contains(found, prereleases=True)
    return Package(wanted.name, found, str(wanted.specifier), fits)
