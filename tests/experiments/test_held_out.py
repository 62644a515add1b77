"""Scores that outlive the process that measured them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from holdfast.experiments.held_out import load_scores, save_scores
from holdfast.training.scoring import PairScores


def test_bit_for_bit_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    columns = torch.tensor(
        [[-1.5, float("-inf")], [0.1, -1e-300], [1, 2], [3, 4], [0, 4]], dtype=torch.float64
    )
    scores = PairScores(*columns)  # rows of one tensor, as scoring makes them
    digest = save_scores(scores, path)
    kept = load_scores(path, digest)
    assert kept is not None
    for field in dataclasses.fields(PairScores):
        before, after = getattr(scores, field.name), getattr(kept, field.name)
        assert after.dtype == torch.float64
        assert torch.equal(before.view(torch.int64), after.view(torch.int64))
    assert load_scores(path, None) is None
    assert load_scores(path, "0" * 64) is None
    assert load_scores(tmp_path / "nowhere", digest) is None
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert load_scores(path, digest) is None
