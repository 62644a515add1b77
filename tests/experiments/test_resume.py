"""Which changes make a run another one, and what is said of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import CheckpointError
from holdfast.experiments.config import AdapterSection, DataSection, ModelSection
from holdfast.experiments.resume import (
    SECTIONS_MAY_CHANGE,
    STAGES_MAY_CHANGE,
    differences,
    require_same,
    require_saved,
    saved_digest,
)
from holdfast.experiments.stage_settings import stage_keys
from holdfast.models.folder import folder_digest
from holdfast.training.config import PreferenceConfig, SFTConfig
from holdfast.training.fingerprint import OPTIMIZATION

RECORD: dict[str, Any] = {
    "config": {
        "model": {"name": "base", "revision": None, "dtype": "bfloat16", "chat_template_kwargs": {}},
        "data": {"source": "a.jsonl", "sft_fraction": 0.3, "max_length": 64},
        "adapter": {"rank": 4, "alpha": 8},
        "sft": None,
        "align": {"learning_rate": 1e-6},
        "output_dir": "runs/a",
        "seed": 0,
    },
    "settings": {
        "align": {
            "learning_rate": 1e-6,
            "logging_steps": 10,
            "objective": {"name": "dpo", "beta": 0.1},
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 2,
            "global_batch_size": 16,
            "lr_scheduler_kwargs": {},
        }
    },
    "data": {
        "splits": {"align": {"rows": 9, "digest": "d1", "order": "o1"}},
        "tokenizer": "t1",
        "refused": {},
    },
    "start": {"name": "base", "digest": "s1"},
    "stages": {},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    record = copy.deepcopy(RECORD)
    *sections, key = path.split(".")
    node = record
    for section in sections:
        node = node[section]
    node[key] = value
    return record


@pytest.mark.parametrize(
    ("path", "value", "difference"),
    [
        ("config.model.dtype", "float32", ("model.dtype", "bfloat16", "float32")),
        (
            "config.model.chat_template_kwargs",
            {"enable_thinking": False},
            ("model.chat_template_kwargs.enable_thinking", None, False),
        ),
        ("config.data.sft_fraction", 0.5, ("data.sft_fraction", 0.3, 0.5)),
        ("config.adapter", None, ("adapter", {"rank": 4, "alpha": 8}, None)),
        ("config.adapter.rank", 8, ("adapter.rank", 4, 8)),
        ("config.seed", 1, ("seed", 0, 1)),
        ("config.sft", {}, ("sft", "no stage", "a stage")),
        ("settings.align.learning_rate", 2e-6, ("align.learning_rate", 1e-6, 2e-6)),
        ("settings.align.objective.beta", 0.2, ("align.objective.beta", 0.1, 0.2)),
        ("settings.align.global_batch_size", 32, ("align.global_batch_size", 16, 32)),
        ("settings.align.lr_scheduler_kwargs", {"a": 1}, ("align.lr_scheduler_kwargs.a", None, 1)),
        ("data.splits.align.order", "o2", ("the rows (data.splits.align.order)", "o1", "o2")),
        (
            "data.splits.held_out",
            {"rows": 1},
            ("the rows (data.splits.held_out)", None, {"rows": 1}),
        ),
        (
            "data.tokenizer",
            "t2",
            ("the tokenizer or its chat template (data.tokenizer)", "t1", "t2"),
        ),
        ("start.digest", "s2", ("the model to start from (start.digest)", "s1", "s2")),
        ("start", {"name": "o/n", "commit": "c"}, ("the model to start from (start.digest)", "s1", None)),
    ],
)
def test_what_makes_another_run(path: str, value: Any, difference: tuple[str, Any, Any]) -> None:
    assert list(differences(RECORD, changed(path, value))) == [difference]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("config.output_dir", "elsewhere"),
        ("config.model.name", "moved/base"),  # the same content: `start`
        ("start.name", "moved/base"),
        ("config.data.source", "moved.jsonl"),  # `data.splits`
        ("settings.align.logging_steps", 1),
        ("settings.align.per_device_train_batch_size", 4),  # `global_batch_size`
        ("settings.align.a_new_setting", 1),  # of a later version
        ("config.data.a_new_setting", 1),
        ("data.refused", {"empty": 3}),
        ("environment", {"device": "another"}),
        ("name", "elsewhere"),
    ],
)
def test_what_may_change(path: str, value: Any) -> None:
    assert list(differences(RECORD, changed(path, value))) == []


def test_names_on_the_hub_are_commits() -> None:
    before = changed("start", {"name": "o/n", "commit": "c1"})
    assert not list(differences(before, changed("start", {"name": "O/n", "commit": "c1"})))
    assert list(differences(before, changed("start", {"name": "o/n", "commit": "c2"})))


def test_what_is_not_known_yet_is_not_compared() -> None:
    now = {key: RECORD[key] for key in ("config", "settings")}
    assert list(differences(RECORD, now)) == []
    assert list(differences(now, RECORD)) == []


def test_the_message_names_all_of_them(tmp_path: Path) -> None:
    now = changed("settings.align.learning_rate", 2e-6)
    now["config"]["seed"] = 7
    require_same(RECORD, RECORD, tmp_path)
    with pytest.raises(CheckpointError) as refused:
        require_same(RECORD, now, tmp_path)
    assert str(refused.value).splitlines() == [
        f"'{tmp_path}' holds another run than the one configured now:",
        f"  seed: 0 in {tmp_path.name}, 7 now",
        f"  align.learning_rate: 1e-06 in {tmp_path.name}, 2e-06 now",
        "Put back what has changed to go on with it, or start anew in another output_dir, or with --overwrite.",
    ]


def test_every_key_that_may_change_exists() -> None:
    known = stage_keys(SFTConfig) | stage_keys(PreferenceConfig)
    assert known >= STAGES_MAY_CHANGE
    sections = {"model": ModelSection, "data": DataSection, "adapter": AdapterSection}
    keys = {f"{name}.{key}" for name, section in sections.items() for key in section.model_fields}
    assert keys | {"output_dir"} >= SECTIONS_MAY_CHANGE


def test_what_decides_the_result_may_not_change() -> None:
    decides = {
        *(
            "learning_rate",
            "weight_decay",
            "optim",
            "optim_args",
            "max_steps",
            "num_train_epochs",
            "warmup_steps",
        ),
        *(
            "lr_scheduler_type",
            "max_grad_norm",
            "objective",
            "bf16",
            "fp16",
            "train_on",
            "neftune_noise_alpha",
        ),
        *(
            "eval_strategy",
            "eval_steps",
            "train_sampling_strategy",
            "dataloader_drop_last",
            "global_batch_size",
        ),
    }
    assert not decides & STAGES_MAY_CHANGE


def test_finished_stages_must_be_as_they_were_saved(tmp_path: Path) -> None:
    folder = tmp_path / "final"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    digest = folder_digest(folder)
    record = {"stages": {"sft": {"saved": {"digest": digest}}, "align": {"steps": 3}}}
    assert saved_digest(record, "sft") == digest
    assert saved_digest(record, "align") is None
    assert saved_digest({"stages": {}}, "sft") is None
    require_saved(record, {"sft": folder, "align": tmp_path / "nowhere"})
    (folder / "config.json").write_text("{ }")
    with pytest.raises(CheckpointError, match="is not what the run saved when sft was finished"):
        require_saved(record, {"sft": folder})
    with pytest.raises(CheckpointError, match="its model '.*nowhere' is gone"):
        require_saved(record, {"sft": tmp_path / "nowhere"})


def test_what_a_run_may_change_the_trainer_lets_it() -> None:
    assert not STAGES_MAY_CHANGE & set(OPTIMIZATION)
