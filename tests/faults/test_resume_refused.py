"""Checkpoints that a run must not go on from: of another run, damaged, incomplete, or with something in them that
would run; and disks that are full while one is written."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from holdfast.errors import CheckpointError, FolderInUse
from holdfast.training.manifest import write_manifest
from holdfast.training.run_lock import RunLock
from tests.faults.runs import Picture, run, trainer_of
from tests.training.conftest import rows

pytestmark = pytest.mark.usefixtures("little_garbage")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Picture]:
    """The folder of a run that saved after steps 2, 4 and 6, and its picture."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    return folder, run(trainer_of("sft", folder, lora=True, save_steps=2))


@pytest.fixture
def folder(saved: tuple[Path, Picture], tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(saved[0], tmp_path / "run"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# ---- of another run

OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "data": ({"train": rows(15)[1:]}, r"rows\.digest: "),
    "order of the data": ({"train": rows(14)[::-1]}, r"rows\.digest: "),
    "number of rows": ({"train": rows(13)}, r"rows\.count: 14 in the checkpoint, 13 now"),
    "seed": ({"seed": 1}, r"data_seed: 42 in the checkpoint, 1 now\n  seed: 42 in the checkpoint, 1 now"),
    "batch": (
        {"per_device_train_batch_size": 4},
        r"global_batch_size: 6 in the checkpoint, 12 now",
    ),
    "rank": ({"adapter": {"rank": 8}}, r"adapter\.r: 4 in the checkpoint, 8 now"),
    "alpha": ({"adapter": {"alpha": 9}}, r"adapter\.lora_alpha: 8 in the checkpoint, 9 now"),
    "adapter's dropout": (
        {"adapter": {"dropout": 0.2}},
        r"adapter\.lora_dropout: 0\.1 in the checkpoint, 0\.2 now",
    ),
    "trained head": (
        {"adapter": {"train_head": False}},
        r"adapter\.modules_to_save: \[.*\] in the .* absent",
    ),
    "base weights": ({"model": {"seed": 1}}, r"base_weights: \"[0-9a-f]{64}\" in the checkpoint"),
    "dropout": ({"model": {"attention_dropout": 0.0}}, r"dropout\.attention_dropout: 0\.1 in"),
    "learning rate": ({"learning_rate": 1e-3}, r"learning_rate: 0\.01 in the checkpoint, 0\.001 now"),
    "optimizer": ({"optim": "sgd"}, r'optim: "adamw_torch_fused" in the checkpoint, "sgd" now'),
    "its settings": ({"adam_beta2": 0.9}, r"adam_beta2: 0\.999 in"),
    "scheduler": ({"lr_scheduler_type": "constant"}, r'lr_scheduler_type: "linear" in'),
    "epochs": ({"num_train_epochs": 3}, r"num_train_epochs: 2 in the checkpoint, 3 now"),
    "objective": ({"objective": {"name": "f_alpha", "alpha": 0.5}}, r'objective\.name: "nll" in'),
    "precision": ({"bf16": True}, r'precision: "no" in the checkpoint, "bf16" now'),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_run(saved: tuple[Path, Picture], what: str) -> None:
    changed, message = OTHERS[what]
    before = names(saved[0])
    trainer = trainer_of("sft", saved[0], lora=True, **changed)
    weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as refused:
        trainer.train(resume_from_checkpoint="auto")
    assert "checkpoint-6' is of another run" in str(refused.value)
    assert "begin anew in another output folder" in str(refused.value)
    assert names(saved[0]) == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trainer.model.state_dict().items())


def test_every_difference_is_listed(saved: tuple[Path, Picture]) -> None:
    trainer = trainer_of("sft", saved[0], lora=False, seed=1, learning_rate=1e-3)
    with pytest.raises(CheckpointError) as refused:
        trainer.train(resume_from_checkpoint=saved[0] / "checkpoint-2")
    fields = [line.split(":")[0].strip() for line in str(refused.value).splitlines()[1:-1]]
    assert {"seed", "data_seed", "learning_rate", "base_weights", "adapter.r"} <= set(fields)
    assert fields == sorted(fields)


# ---- none, or not whole


def test_none_is_there(tmp_path: Path) -> None:
    trainer = trainer_of("sft", tmp_path / "run", lora=True)
    with pytest.raises(CheckpointError, match="there is no checkpoint in '.*run' to go on from"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match="checkpoint-9' cannot be used: 'checkpoint-9' is not a folder"):
        trainer.train(resume_from_checkpoint=tmp_path / "run" / "checkpoint-9")
    assert names(tmp_path / "run") == []


FILES = [
    *("adapter_model.safetensors", "adapter_config.json", "tokenizer.json"),
    *("optimizer.json", "optimizer.safetensors", "progress.json", "progress.safetensors"),
    *("trainer_state.json", "fingerprint.json", "manifest.json"),
]


@pytest.mark.parametrize("damage", [Path.unlink, flip], ids=["missing", "a byte flipped"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file(
    folder: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None]
) -> None:
    """The one before is used; and where that one file is gone from all of them, none, and nothing begins anew."""
    trainer = trainer_of("sft", folder, lora=True)
    damage(folder / "checkpoint-6" / name)
    assert trainer._fields is None
    trainer._fields = trainer._fingerprint()
    assert trainer._begin("auto") == folder / "checkpoint-4"
    (warning,) = [line for line in caplog.messages if "checkpoint-6' is not used" in line]
    if name != "manifest.json" or damage is not flip:  # a changed manifest may name another file
        assert repr(name) in warning
    assert names(folder) == [
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-6.before-1",
        "metrics.jsonl",
        "run.lock",
    ]
    trainer.folder.release()
    for step in (2, 4):
        damage(folder / f"checkpoint-{step}" / name)
    with pytest.raises(CheckpointError, match="no checkpoint in .* can be used"):
        trainer.train(resume_from_checkpoint="auto")


def test_from_the_one_before_it_is_the_same_run(
    folder: Path, saved: tuple[Path, Picture], caplog: pytest.LogCaptureFixture
) -> None:
    flip(folder / "checkpoint-6" / "adapter_model.safetensors")
    (folder / "checkpoint-4" / "optimizer.safetensors").unlink()
    run(trainer_of("sft", folder, lora=True, save_steps=2), "auto").require_same(saved[1])
    assert [line.split("'")[1][-12:] for line in caplog.messages if "is not used" in line] == [
        "checkpoint-6",
        "checkpoint-4",
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("optimizer.json", r"the state '.*checkpoint-6/optimizer\.json' cannot be read"),
        (
            "optimizer.safetensors",
            r"the state's tensors '.*checkpoint-6/optimizer\.safetensors' cannot be read",
        ),
        (
            "progress.safetensors",
            r"the state's tensors '.*checkpoint-6/progress\.safetensors' cannot be read",
        ),
        ("progress.json", r"checkpoint-6' holds weights alone \(save_only_model\)"),
        ("adapter_model.safetensors", r"the weights in '.*checkpoint-6' cannot be read"),
        ("fingerprint.json", r"'.*checkpoint-6/fingerprint\.json' cannot be read"),
        ("trainer_state.json", r"'.*checkpoint-6/trainer_state\.json' is not the state of a trainer"),
    ],
)
def test_a_file_that_was_never_there(folder: Path, name: str, message: str) -> None:
    """Its manifest does not miss it; the optimizer is never a fresh one."""
    checkpoint = folder / "checkpoint-6"
    (checkpoint / name).unlink()
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint, 6)
    with pytest.raises(CheckpointError, match=message):
        trainer_of("sft", folder, lora=True).train(resume_from_checkpoint=checkpoint)


def test_weights_alone(tmp_path: Path) -> None:
    trainer_of("sft", tmp_path / "run", lora=True, save_only_model=True, save_steps=3).train()
    kept = set(names(tmp_path / "run" / "checkpoint-3"))
    assert {"adapter_model.safetensors", "adapter_config.json", "fingerprint.json", "manifest.json"} <= kept
    assert not kept & {"optimizer.json", "optimizer.safetensors", "progress.json"}
    with pytest.raises(CheckpointError, match=r"checkpoint-6' holds weights alone \(save_only_model\)"):
        trainer_of("sft", tmp_path / "run", lora=True).train(resume_from_checkpoint=True)


def test_another_trainers_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoint-5"
    folder.mkdir(parents=True)
    torch.save({}, folder / "optimizer.pt")
    (folder / "trainer_state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="'manifest.json' is missing: .* not written by this program"):
        trainer_of("sft", tmp_path / "run", lora=True).train(resume_from_checkpoint="auto")


def test_a_start_from_nothing_loses_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer_of("sft", folder, lora=True, save_steps=4, learning_rate=1e-3).train()
    assert names(folder) == [
        *("checkpoint-2.before-1", "checkpoint-4", "checkpoint-4.before-1", "checkpoint-6"),
        *("checkpoint-6.before-1", "metrics.jsonl"),
    ]
    assert any("begins at its start" in line and "checkpoint-6.before-1" in line for line in caplog.messages)


def test_from_an_earlier_one_the_later_ones_are_kept(folder: Path) -> None:
    trainer_of("sft", folder, lora=True, save_steps=3).train(resume_from_checkpoint=folder / "checkpoint-2")
    assert names(folder) == [
        *("checkpoint-2", "checkpoint-3", "checkpoint-4.before-1", "checkpoint-6", "checkpoint-6.before-1"),
        "metrics.jsonl",
    ]


def test_two_runs_in_one_folder(folder: Path) -> None:
    with RunLock(folder), pytest.raises(FolderInUse, match=f"process {os.getpid()} on host"):
        trainer_of("sft", folder, lora=True).train(resume_from_checkpoint=True)


# ---- what would run


class Planted:
    """A pickle that leaves a file behind when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "rng_state.pth", "training_args.bin", "optimizer.safetensors"]
)
@pytest.mark.parametrize("form", ["pickle", "torch.save"])
@pytest.mark.parametrize("listed", [False, True], ids=["as it is", "in the manifest"])
def test_a_planted_pickle(folder: Path, tmp_path: Path, name: str, form: str, listed: bool) -> None:
    """Not read, whatever its name, even by somebody who can make the manifest anew."""
    checkpoint, mark = folder / "checkpoint-6", tmp_path / "it ran"
    if form == "pickle":
        (checkpoint / name).write_bytes(pickle.dumps(Planted(mark)))
    else:
        torch.save(Planted(mark), checkpoint / name)
    if listed:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        content = (checkpoint / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
        (checkpoint / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    trainer = trainer_of("sft", folder, lora=True)
    with pytest.raises(CheckpointError, match=f"checkpoint-6' cannot be used: '{name}' ") as refused:
        trainer.train(resume_from_checkpoint=checkpoint)
    if listed:
        assert "may run code when it is read" in str(refused.value) or "pickle" in str(refused.value)
    assert not mark.exists()


# ---- a disk that is full


def test_a_disk_that_fills_up(
    tmp_path: Path, saved: tuple[Path, Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any sync of a save: the message says so, the one before stands, and the run can go on when there is room."""
    refused, fsync = 0, os.fsync
    for chosen in (1, 5, 10, 15, 18):
        folder = tmp_path / str(chosen) / "run"
        trainer = trainer_of("sft", folder, lora=True, save_steps=2)
        syncs = []

        def full(handle: int, chosen: int = chosen, syncs: list[int] = syncs, trainer: Any = trainer) -> None:
            if trainer.state.global_step == 4:
                syncs.append(handle)
                if len(syncs) >= chosen:
                    raise OSError(errno.ENOSPC, "No space left on device")
            fsync(handle)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(CheckpointError, match=r"checkpoint-4 cannot be written .* No space left"):
                trainer.train()
        refused += 1
        assert names(folder) == ["checkpoint-2", "metrics.jsonl"]
        assert not [path for path in folder.iterdir() if path.name.endswith(".partial")]
    run(trainer_of("sft", folder, lora=True, save_steps=2), "auto").require_same(saved[1])
    assert refused == 5


def test_no_room_for_one_is_said_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of("sft", tmp_path / "run", lora=False)
    expected = 3 * sum(p.numel() * 4 for p in trainer.model.parameters())  # float32 weights and two moments
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("", (), {"free": expected - 1}))
    with pytest.raises(
        CheckpointError, match=f"not one checkpoint fits in .*: it needs about {expected:,} bytes"
    ):
        trainer.train()
    assert trainer.state.global_step == 0


# ---- numbers


@pytest.mark.parametrize("where", ["weights", "moments"])
def test_a_number_that_is_not_finite_is_never_published(tmp_path: Path, where: str) -> None:
    class Spoil(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                parameter = next(p for p in trainer.model.parameters() if p.requires_grad)
                optimizer = trainer._inner_optimizer()
                spoiled = parameter.data if where == "weights" else optimizer.state[parameter]["exp_avg"]
                spoiled.view(-1)[1] = float("nan")

    trainer = trainer_of("sft", tmp_path / "run", lora=False, save_steps=2, callbacks=[Spoil()])
    name = next(name for name, p in trainer.model.named_parameters() if p.requires_grad)
    what = name if where == "weights" else f"exp_avg of {name}"
    with pytest.raises(CheckpointError, match=f"NaN or infinity in {what}: no checkpoint is written"):
        trainer.train()
    assert names(tmp_path / "run") == ["checkpoint-2", "metrics.jsonl"]
