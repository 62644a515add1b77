"""What a run needs on the disk, by hand."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import CheckpointError, ModelError
from holdfast.experiments.arguments import stage_arguments
from holdfast.experiments.config import RunConfig, parse_config
from holdfast.experiments.disk import bytes_needed, require_room
from holdfast.models.tiny import tiny_model

SCRATCH = {"family": "llama", "vocab_size": 300, "hidden_size": 32, "layers": 2}


def configured(tmp_path: Path, **changes: Any) -> RunConfig:
    stage = {"use_cpu": True}
    return parse_config(
        {
            "model": {"from_scratch": SCRATCH},
            "data": {"source": "rows.jsonl"},
            "adapter": None,
            "sft": stage,
            "align": stage,
            "output_dir": str(tmp_path),
            **changes,
        }
    )


def needed(tmp_path: Path, **changes: Any) -> tuple[int, int]:
    config = configured(tmp_path, **changes)
    return bytes_needed(config, stage_arguments(config, tmp_path).stages())


def test_every_weight_trained(tmp_path: Path) -> None:
    weights = tiny_model("llama", 300, hidden_size=32, layers=2).num_parameters()
    # a checkpoint: the weight and Adam's two moments, four bytes each
    assert needed(tmp_path) == (12 * weights, 4 * weights)
    half = {"from_scratch": SCRATCH, "save_dtype": "bfloat16"}
    assert needed(tmp_path, model=half) == (12 * weights, 2 * weights)
    for stage, bytes_a_weight in (
        ({"optim": "sgd"}, 4),
        ({"save_only_model": True}, 4),
        ({"save_strategy": "no"}, 0),
    ):
        changes = dict.fromkeys(("sft", "align"), stage | {"use_cpu": True})
        assert needed(tmp_path, **changes) == (bytes_a_weight * weights, 4 * weights)
    # the larger of the two stages'
    assert needed(tmp_path, sft={"optim": "sgd", "use_cpu": True})[0] == 12 * weights


def test_an_adapter(tmp_path: Path) -> None:
    model = tiny_model("llama", 300, hidden_size=32, layers=2)
    projections = [module.weight.shape for name, module in model.named_modules() if name.endswith("_proj")]
    trained = sum(3 * (rows + columns) for rows, columns in projections)
    head = model.get_output_embeddings().weight.numel()
    final = 4 * model.num_parameters()
    adapter = {"rank": 3, "train_head": False}
    assert needed(tmp_path, adapter=adapter) == (12 * trained, final)
    assert needed(tmp_path, adapter=adapter | {"train_head": True}) == (12 * (trained + head), final)


def test_room_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured(tmp_path)
    stages = stage_arguments(config, tmp_path).stages()
    checkpoint, final = bytes_needed(config, stages)
    usage = shutil.disk_usage(tmp_path)

    def free(count: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=count))

    free(checkpoint + 2 * final)
    require_room(config, stages, tmp_path)
    free(checkpoint + 2 * final - 1)
    with pytest.raises(CheckpointError, match="too little room"):
        require_room(config, stages, tmp_path)


def test_a_model_that_cannot_be_told_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one where the model is loaded, with a message of its own."""
    config = configured(tmp_path, model=str(tmp_path / "nowhere"))
    stages = stage_arguments(config, tmp_path).stages()
    with pytest.raises(ModelError, match="nowhere"):
        bytes_needed(config, stages)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: pytest.fail("asked for nothing"))
    require_room(config, stages, tmp_path)
