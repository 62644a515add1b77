"""The held-out pairs' scores before alignment, kept: a resumed run gives the verdict of one that was never stopped."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file, save_file

from holdfast.files import replacing, sha256_of
from holdfast.training.scoring import PairScores


def save_scores(scores: PairScores, path: Path) -> str:
    """Write the scores; returns the file's SHA-256."""
    with replacing(path) as beside:
        save_file({name: column.contiguous().clone() for name, column in asdict(scores).items()}, beside)
    return sha256_of(path)


def load_scores(path: Path, digest: str | None) -> PairScores | None:
    """What `save_scores` wrote; None where there is no such file, or not the one that `digest` names."""
    if digest is None or not path.is_file() or sha256_of(path) != digest:
        return None
    return PairScores(**load_file(path))
