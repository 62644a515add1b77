"""`run.json`: everything needed to say what a run was, and to run it again."""

from __future__ import annotations

import json
import math
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from holdfast.errors import CheckpointError
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


def hub_commit(kind: Literal["model", "dataset"], name: str, revision: str | None = None) -> str | None:
    """The commit that a hub name stood for when it was last loaded here, by the hub's local cache; None: not known."""
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)
    try:
        return (folder / "refs" / (revision or "main")).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None


def read_record(path: Path) -> dict[str, Any]:
    """The record that `write_record` wrote.

    Raises:
        CheckpointError: no such file, or it holds no record.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"'{path}' cannot be read: {error}") from error
    parts = (
        (record.get(name) for name in ("config", "settings", "stages"))
        if isinstance(record, dict)
        else [None]
    )
    if not all(isinstance(part, dict) for part in parts) or not all(
        isinstance(stage, dict) for stage in record["stages"].values()
    ):
        raise CheckpointError(f"'{path}' is not the record of a run")
    return record


def write_record(record: dict[str, Any], path: Path) -> None:
    """Write `run.json` whole or not at all."""
    with replacing(path) as beside:
        text = json.dumps(finite(without_keys(record)), indent=2, ensure_ascii=False, allow_nan=False)
        beside.write_text(text + "\n", encoding="utf-8")


def without_keys(value: Any) -> Any:
    """The value with the parts of URLs left out that carry keys: what stands before an `@`, and the query."""
    if isinstance(value, dict):
        return {key: without_keys(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_keys(inner) for inner in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"(\w://)(?:[^/\s?#]*@)?([^\s?#]*)(?:[?#]\S*)?", r"\1\2", value)


def finite(value: Any) -> Any:
    """The value with every NaN and infinity, which JSON cannot hold, as null."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
