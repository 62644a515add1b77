"""`run.json`: everything needed to say what a run was, and to run it again."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from holdfast.files import replacing

PACKAGES = ("holdfast", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers")


def environment() -> dict[str, Any]:
    """Versions and hardware; nothing that names a user, a host or a key."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    device = (
        torch.cuda.get_device_name(0)
        if torch.cuda.is_available()
        else platform.processor() or platform.machine()
    )
    return {
        "versions": versions,
        "device": device,
        "devices": torch.cuda.device_count() or 1,
        "threads": torch.get_num_threads(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of a model folder's weights and configuration."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json", ".jinja", ".model"):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def write_record(record: dict[str, Any], path: Path) -> None:
    """Write `run.json` whole or not at all."""
    with replacing(path) as beside:
        text = json.dumps(finite(record), indent=2, ensure_ascii=False, allow_nan=False)
        beside.write_text(text + "\n", encoding="utf-8")


def finite(value: Any) -> Any:
    """The value with every NaN and infinity, which JSON cannot hold, as null."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
