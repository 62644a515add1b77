"""Names of models and judges as parts of paths."""

from __future__ import annotations

from pathlib import Path

from holdfast.errors import ConfigError


def stem_of(name: str) -> str:
    """A model's name as a file's: the last part of a path or hub name."""
    stem = name.rstrip("/").rsplit("/", 1)[-1]
    if stem in ("", ".", ".."):
        raise ConfigError(f"'{name}' is no name for a model; give one with --model-id")
    return stem


def judge_path(name: str) -> Path:
    """A judge's name as the original tools have it in paths: whole, so that `org/j` and `other/j` share nothing."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or not name.isprintable():
        raise ConfigError(f"{name!r} is no name for a judge: its judgments are kept in a folder of that name")
    return Path(*parts)
