"""A key in the environment, in the configuration or in a URL is in no file, no line printed and no argument list."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from holdfast.cli.main import main
from holdfast.experiments import pipeline
from holdfast.training.config import SFTConfig
from holdfast.training.sft_trainer import SFTTrainer
from tests.faults.whole_runs import ended, forked, quick
from tests.training.conftest import rows

CANARY = "hf_CanaryCanaryCanaryCanaryCanary"
VARIABLES = (
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"),
    *("AWS_SECRET_ACCESS_KEY", "COMET_API_KEY", "NEPTUNE_API_TOKEN"),
)
URL = f"https://user:{CANARY}@example.org/rows.jsonl?token={CANARY}"


@pytest.fixture(autouse=True)
def keys_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, CANARY)


def found(*folders: Path) -> list[Path]:
    """The files that hold the canary, or have it in their names."""
    paths = [path for folder in folders for path in folder.rglob("*")]
    assert paths
    return [
        path
        for path in paths
        if CANARY in path.name or (path.is_file() and CANARY.encode() in path.read_bytes())
    ]


def arguments_of(process: int) -> Iterator[bytes]:
    """The argument lists of a process and of all below it."""
    try:
        yield Path(f"/proc/{process}/cmdline").read_bytes()
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from arguments_of(int(child))
    except OSError:
        return  # it has ended


def test_of_the_environment(place: Path, tmp_path: Path) -> None:
    """A whole run through the command line, as talkative as it can be, with processes of its own that load rows."""
    config = quick(place, "", output_dir=str(tmp_path / "run"))
    config["sft"] |= {"log_level": "debug", "dataloader_num_workers": 1, "run_name": URL}
    config["align"] |= {"log_level": "debug", "eval_strategy": "steps", "eval_steps": 2}
    file = place / "run.yaml"  # holds the key itself
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "holdfast", "run", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"HOLDFAST_CACHE": str(tmp_path / "cache"), "TRANSFORMERS_VERBOSITY": "debug"},
    )
    seen: set[bytes] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            seen.update(arguments_of(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    said, _ = process.communicate()
    over.set()
    watcher.join()
    assert process.returncode == 0, said.decode()
    assert CANARY.encode() not in said
    assert any(b"holdfast" in arguments for arguments in seen)
    assert not [arguments for arguments in seen if CANARY.encode() in arguments]
    for name in ("run.json", "metrics.jsonl", "report.html", "align/checkpoint-2/trainer_state.json"):
        assert (tmp_path / "run" / name).is_file()
    assert "https://example.org/rows.jsonl" in (tmp_path / "run" / "run.json").read_text()
    assert found(tmp_path) == []


@pytest.mark.parametrize(
    "change",
    [
        {"sft.hub_token": CANARY},
        {"align.push_to_hub_token": CANARY},
        {"sft.report_to": URL},
        {"sft.learning_rate": URL},
        {"data.source": URL},
        {"data.source": [URL]},
        {"data": URL},
        {"model": URL},
        {"model.tokenizer": URL},
        {"model.chat_template": URL},
        {"output_dir": URL},
        {"wandb_api_key": CANARY},
    ],
    ids=lambda change: next(iter(change)),
)
def test_of_the_configuration(
    change: dict[str, Any], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused: by the key's name, and without its value. In the file, and as an override."""
    config = quick(place, "", output_dir=str(tmp_path / "run"))
    (key, value) = next(iter(change.items()))
    file, output = place / "refused.yaml", tmp_path / "output"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    override = f"{key}={yaml.safe_dump(value, default_flow_style=True).split(chr(10))[0]}"
    monkeypatch.setattr(sys, "argv", ["holdfast", "run", str(file), override])
    assert ended(forked(main, output)) == 2, output.read_text()
    assert f"{key}" in output.read_text()
    assert found(tmp_path) == []


@pytest.mark.parametrize(
    "arguments", [[URL, "rows.jsonl"], ["model", URL], ["model", "rows", f"hub_token={CANARY}"]], ids=len
)
def test_of_the_arguments(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `holdfast sft MODEL DATA KEY=VALUE`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["holdfast", "sft", *arguments])
    output = tmp_path / "output"
    assert ended(forked(main, output)) == 2, output.read_text()
    assert found(tmp_path) == []


def test_of_a_crash(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback shows code, and no values."""
    config = quick(place, "", output_dir=str(tmp_path / "run"), align=None)
    config["sft"] |= {"run_name": URL, "max_steps": 3, "save_steps": 1}
    file, output = place / "crash.yaml", tmp_path / "output"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")

    class Crash(pipeline.MetricsFile):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                raise RuntimeError("a fault of the machine's")

    monkeypatch.setattr(pipeline, "MetricsFile", Crash)
    monkeypatch.setattr(sys, "argv", ["holdfast", "run", str(file)])
    assert ended(forked(main, output)) == 1
    assert "RuntimeError: a fault of the machine's" in output.read_text()
    assert (tmp_path / "run" / "sft" / "checkpoint-1").is_dir()
    assert found(tmp_path) == []


def test_of_the_trainers_arguments(place: Path, tmp_path: Path) -> None:
    """`hub_token` in Python: a checkpoint is written, and what `save_model` writes."""
    args = SFTConfig(
        output_dir=str(tmp_path / "out"), use_cpu=True, max_steps=1, save_steps=1, hub_token=CANARY
    )
    trainer = SFTTrainer(model=str(place / "start"), args=args, train_dataset=rows(8))
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "out" / "checkpoint-1" / "trainer_state.json").is_file()
    assert list((tmp_path / "saved").glob("*.safetensors"))
    assert found(tmp_path) == []
