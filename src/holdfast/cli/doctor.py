"""`holdfast doctor`: what is installed, what it would compute with, and what to mend."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from holdfast.cli.printing import drawn, say
from holdfast.errors import ConfigError
from holdfast.experiments import installation
from holdfast.reports.visible import visible

GB = 10**9
LITTLE = 10 * GB  # bytes free below which a disk is spoken of: a model of 4 billion parameters is 8
IMPOSSIBLE, WARNING = "training is impossible", "warning"

Finding = dict[str, str]


def show_doctor(*, as_json: bool) -> int:
    """Look, print what was found, and return the exit code: 2 where training is impossible, else 0."""
    found = examined()
    if as_json:
        say(json.dumps(found, allow_nan=False))
    else:
        say(drawn(lambda console: render(found, console)))
    impossible = any(finding["kind"] == IMPOSSIBLE for finding in found["findings"])
    return ConfigError.exit_code if impossible else 0


def examined() -> dict[str, Any]:
    """Everything that is printed, as JSON has it. Where a library cannot be imported, the machine is not looked at."""
    needed, optional = installation.requirements(), installation.optional()
    found: dict[str, Any] = {
        "versions": installation.versions()
        | {name: installation.installed(name) for name in installation.NEEDED},
        "optional": {package.name: package.version for package in optional},
    }
    findings = [*package_findings(needed, optional), *import_findings()]
    if not any(finding["kind"] == IMPOSSIBLE for finding in findings):
        found |= looked_at()
        findings += machine_findings(found)
    return found | {"findings": findings}


def looked_at() -> dict[str, Any]:
    """The machine, as far as torch and the disks tell."""
    import torch

    from holdfast.cli.quiet import quiet_libraries

    quiet_libraries()
    from holdfast.experiments import machine

    device = machine.training_device()
    refused = machine.why_not_computed(device)
    return {
        "cpu": machine.processor(),
        "gpus": [] if refused else machine.gpus(),  # asking a broken driver may raise
        "mps": torch.backends.mps.is_available(),
        "nvidia_driver": machine.has_nvidia_driver(),
        "torch_cuda": torch.version.cuda,
        "device": str(device),
        "device_refuses": refused,
        "choices": {} if refused else machine.choices(device),
        "disks": machine.disks(),
        "hub": machine.hub(),
    }


# ---- what to mend


def package_findings(
    needed: list[installation.Package], optional: list[installation.Package]
) -> Iterator[Finding]:
    """Packages that are missing, or not of the versions that are asked for."""
    if not needed:
        yield _warning(
            "holdfast is not installed as a package, so which versions it needs is not known",
            "pip install -e . in its folder",
        )
    for group, is_needed in ((needed, True), (optional, False)):
        for package in group:
            install = f"pip install '{package.name}{package.wanted}'"
            if package.version is None:
                if is_needed:
                    yield _impossible(f"{package.name} is not installed", install)
            elif not package.fits:
                yield _warning(f"{package.name} is {package.version}; {package.wanted} is asked for", install)


def import_findings() -> Iterator[Finding]:
    """Packages that are installed and cannot be imported."""
    for name in installation.NEEDED:
        refused = installation.why_not_imported(name) if installation.installed(name) else ""
        if refused:
            yield _impossible(
                f"{name} cannot be imported ({refused})", f"pip install --force-reinstall {name}"
            )


def machine_findings(found: Mapping[str, Any]) -> Iterator[Finding]:
    """What the machine lacks, or has and does not use."""
    device, cpu = found["device"], found["cpu"]
    if found["device_refuses"]:
        yield _impossible(
            f"{device} does not compute ({found['device_refuses']})",
            "see that no other program fills it, then install the torch that suits its driver (pytorch.org)",
        )
    if found["nvidia_driver"] and not found["gpus"] and not found["device_refuses"]:
        why = (
            "this torch was built without CUDA"
            if found["torch_cuda"] is None
            else f"torch, built for CUDA {found['torch_cuda']}, finds none"
        )
        yield _warning(
            f"there is an NVIDIA driver, and {why}",
            "install a torch that suits the driver (pytorch.org), and see that CUDA_VISIBLE_DEVICES names a GPU",
        )
    if device == "cpu":
        yield _warning(
            "there is no GPU to train on", "train small models here; larger ones where there is a GPU"
        )
        if cpu["told"] and cpu["threads"] < cpu["cores"]:
            yield _warning(
                f"torch computes with {cpu['threads']} threads on {cpu['cores']} cores, as the environment says",
                "unset OMP_NUM_THREADS and MKL_NUM_THREADS: torch finds the number itself",
            )
    for gpu in found["gpus"]:
        if float(gpu["capability"]) < 8:
            yield _warning(
                f"{gpu['name']} has compute capability {gpu['capability']}: no units for bfloat16, no Triton kernel",
                "set fp16: true in the stages, which switches bf16 off",
            )
    if found["gpus"] and found["optional"].get("triton") is None and sys.platform == "linux":
        yield _warning("triton is not installed, so the LM head is plain torch's", "pip install triton")
    for name, disk in found["disks"].items():
        if disk["free"] < LITTLE:
            yield _warning(
                f"{disk['free'] / GB:.1f} GB are free in the {name} ('{disk['path']}')",
                "free some; output_dir names another place for runs, HF_HOME one for the hub's cache",
            )
    if found["hub"]["offline"]:
        yield _warning(
            "the hub is off (HF_HUB_OFFLINE): names are found in its cache alone", "unset HF_HUB_OFFLINE"
        )


def _impossible(what: str, mend: str) -> Finding:
    return {"kind": IMPOSSIBLE, "what": what, "mend": mend}


def _warning(what: str, mend: str) -> Finding:
    return {"kind": WARNING, "what": what, "mend": mend}


# ---- in the terminal


def render(found: Mapping[str, Any], console: Console) -> None:
    """Print what `examined` found."""
    _section(
        "Versions", {name: words or "not installed" for name, words in found["versions"].items()}, console
    )
    if "cpu" in found:
        _section("Devices", dict(device_lines(found)), console)
        _section("Computed with", found["choices"], console)
        _section("Disk and hub", dict(place_lines(found)), console)
    _section("Optional packages", dict(optional_lines(found["optional"])), console)
    console.print(Text("Findings", "bold"))
    if not found["findings"]:
        console.print(Text("  none", "green"))
    for finding in found["findings"]:
        style = "red" if finding["kind"] == IMPOSSIBLE else "yellow"
        console.print(Text.assemble("  ", (finding["kind"], style), f": {visible(finding['what'])}"))
        console.print(Text(f"    {visible(finding['mend'])}"))


def device_lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each device by name."""
    for number, gpu in enumerate(found["gpus"]):
        yield (
            f"cuda:{number}",
            f"{gpu['name']}, {gpu['memory'] / GB:.0f} GB, compute capability {gpu['capability']}",
        )
    if found["mps"]:
        yield "mps", "Apple's GPU"
    cpu = found["cpu"]
    yield (
        "cpu",
        f"{cpu['name']}, {cpu['cores']} cores, torch with {cpu['threads']} threads and {cpu['instructions']}",
    )


def place_lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Free disk, and whether a token is set."""
    for name, disk in found["disks"].items():
        yield name, f"{disk['free'] / GB:.1f} GB free ('{disk['path']}')"
    yield "hub's token", "there" if found["hub"]["token"] else "none: private and gated names need HF_TOKEN"


def optional_lines(optional: Mapping[str, str | None]) -> Iterator[tuple[str, str]]:
    """Each optional package: its version, or what it is for and how to install it."""
    for name, found in optional.items():
        use, install = installation.OPTIONAL[name]
        yield name, f"{found} ({use})" if found else f"not installed ({use}): {install}"


def _section(title: str, lines: Mapping[str, str], console: Console) -> None:
    console.print(Text(title, "bold"))
    table = Table.grid(padding=(0, 2))
    for name, words in lines.items():
        table.add_row(Text(f"  {visible(name)}"), Text(visible(words)))
    console.print(table)
    console.print()
