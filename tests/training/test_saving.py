"""What a checkpoint folder holds, and what no file of the program ever reads or writes; going on from one is tested
in tests/faults/test_resume*.py."""

from __future__ import annotations

import json
from pathlib import Path

import holdfast
from holdfast.training.manifest import verify
from holdfast.training.state_files import load_state
from tests.faults.runs import trainer_of


def test_a_checkpoint_folder(tmp_path: Path) -> None:
    trainer_of("sft", tmp_path / "run", lora=True, max_steps=2, save_steps=2).train()
    folder = tmp_path / "run" / "checkpoint-2"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "fingerprint.json"),
        *(
            "manifest.json",
            "optimizer.json",
            "optimizer.safetensors",
            "progress.json",
            "progress.safetensors",
        ),
        *("tokenizer.json", "tokenizer_config.json", "trainer_state.json"),
    ]
    assert verify(folder) == []
    optimizer = load_state(folder / "optimizer")
    trained = {name for group in optimizer["groups"] for name in group["params"]}
    assert optimizer["state"].keys() == trained
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight" in trained
    progress = load_state(folder / "progress")
    assert progress["scheduler"]["last_epoch"] == 2
    assert [process.keys() for process in progress["processes"]] == [{"loss_since_log", "sums", "rng"}]
    fields = json.loads((folder / "fingerprint.json").read_text())
    assert fields["global_batch_size"] == 6
    assert fields["rows.count"] == 14
    assert all(not isinstance(value, dict) or not value for value in fields.values())


def test_save_model_writes_no_pickle(tmp_path: Path) -> None:
    trainer = trainer_of("sft", tmp_path / "run", lora=False)
    trainer.save_model(str(tmp_path / "model"))
    assert {path.suffix for path in (tmp_path / "model").iterdir()} == {".json", ".safetensors", ".jinja"}


def test_nothing_in_the_program_reads_or_writes_a_pickle() -> None:
    words = ("weights_only=False", "import pickle", "torch.save(", "torch.load(")
    for file in Path(holdfast.__file__).parent.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not [word for word in words if word in text], file
