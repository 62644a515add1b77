"""What this machine is, and what training would compute with here: asked of the functions that choose."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_token
from transformers.utils import is_flash_attn_2_available

from holdfast.data.processes import cores
from holdfast.models.token_logprobs import HEAD_WORDS
from holdfast.ops.linear import PROCESSORS, onednn_is_faster
from holdfast.ops.linear_logprob import WHOLE_LOGITS, implementation_for
from holdfast.ops.prefix_attention import half_is_slower, has_matrix_units, widens
from holdfast.training.config import gpu_has_bfloat16

NATIVE_BFLOAT16 = (8, 0)  # the first compute capability with bfloat16 units


def processor() -> dict[str, Any]:
    """The CPU: its name, its cores, and the instructions that torch uses there; `told`: how many threads, if set."""
    told = (os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))
    return {
        "name": _processor_name(),
        "cores": cores(),
        "told": any(told),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def gpus() -> list[dict[str, Any]]:
    """NVIDIA's (and AMD's, by a torch for them): name, bytes of memory, compute capability."""
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        {"name": one.name, "memory": one.total_memory, "capability": f"{one.major}.{one.minor}"}
        for one in found
    ]


def training_device() -> torch.device:
    """Where a run on one device trains."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def why_not_computed(device: torch.device) -> str:
    """What a small product on a device ends with; empty where it is right."""
    try:
        found = torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)
        return "" if found.sum().item() == 512 else f"8 x 8 ones give a sum of {found.sum().item()}, not 512"
    except Exception as error:  # whatever a driver can raise
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def choices(device: torch.device) -> dict[str, str]:
    """Part -> what computes it on a device, in words, with a run's own defaults."""
    half = device.type == "cuda" and gpu_has_bfloat16()
    dtype = torch.bfloat16 if half else torch.float32
    found = {
        "device": str(device),
        "precision": "bfloat16 (bf16, the default here)" if half else "float32 (bf16 is off by default here)",
        "LM head of pairs": HEAD_WORDS[implementation_for(device, dtype, WHOLE_LOGITS + 1)],
        "attention": "sdpa, unless the model's family has another",
        "bfloat16": _bfloat16(device),
    }
    if device.type == "cuda" and is_flash_attn_2_available():
        found["attention"] += "; flash_attention_2 where model.attention says so"
    if device.type == "cpu":
        if widens(torch.bfloat16):
            found["attention"] += "; bfloat16 in float32"
        found["float32 products"] = "oneDNN" if onednn_is_faster() else "torch's own choice"
    return found


def _bfloat16(device: torch.device) -> str:
    """Whether it is worth it, in words."""
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= NATIVE_BFLOAT16:
            return "worth it: half the memory of frozen weights, and matrix units for it"
        return "not worth it: this GPU has no units for it"
    if device.type == "cpu" and half_is_slower():
        return "halves the memory of frozen weights; this CPU has no matrix units for it, and attends faster in float32"
    if device.type == "cpu" and has_matrix_units():
        return "worth it: half the memory of frozen weights, and matrix units for it (AMX)"
    return "halves the memory of frozen weights; whether it is faster here is not known"


def disks() -> dict[str, dict[str, Any]]:
    """Free bytes where runs and models go: in the current folder, and in the hub's cache."""
    places = ("current folder", Path.cwd()), ("hub's cache", Path(constants.HF_HUB_CACHE))
    return {
        name: {"path": str(path), "free": shutil.disk_usage(above).free}
        for name, path in places
        if (above := _there(path)) is not None
    }


def hub() -> dict[str, bool]:
    """Whether there is a token of the hub, set or stored, never which; and whether the hub is off."""
    return {"token": get_token() is not None, "offline": bool(constants.HF_HUB_OFFLINE)}


def has_nvidia_driver() -> bool:
    """Whether the system has one, whatever torch makes of it."""
    return Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None


def _there(path: Path) -> Path | None:
    """The nearest folder that exists; None on a drive that does not."""
    return next((one for one in (path, *path.parents) if os.path.isdir(one)), None)


def _processor_name() -> str:
    """As Linux says it; elsewhere as Python does."""
    if PROCESSORS.exists():
        for line in PROCESSORS.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
