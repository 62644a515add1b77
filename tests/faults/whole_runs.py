"""Whole runs for the tests of faults: small, with all that makes resuming hard, and what must come out equal."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.experiments import pipeline
from holdfast.experiments.config import parse_config
from holdfast.models.tiny import tiny_bpe_tokenizer, tiny_model
from tests.training.conftest import WORDS, rows

# What two runs may differ in: times, and what follows from them.
TIMES = ("runtime", "second", "started", "finished")


def start_folder(folder: Path) -> Path:
    """A tiny model with its tokenizer."""
    tokenizer = tiny_bpe_tokenizer([" ".join(WORDS)] * 3, 320)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = tiny_model("qwen3", len(tokenizer), hidden_size=32, layers=2, **ends)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows_file(path: Path, count: int = 60) -> Path:
    """Preference rows, one a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(count)), encoding="utf-8")
    return path


def make_place(folder: Path) -> Path:
    """A folder with a start model and rows."""
    start_folder(folder / "start")
    rows_file(folder / "rows.jsonl")
    return folder


def settings(place: Path, name: str, **changes: Any) -> dict[str, Any]:
    """Both stages with LoRA and dropout, three micro-batches a step and fewer in the last, two epochs of three steps.

    Args:
        place: see `make_place`; the run's folder is `name` in it.
    """
    stage = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 3,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 2,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return {
        "model": str(place / "start"),
        "data": {
            "source": str(place / "rows.jsonl"),
            "eval_fraction": 0.25,
            "sft_fraction": 0.35,
            "max_length": 64,
        },
        "adapter": {"rank": 4, "alpha": 8, "dropout": 0.1},
        "sft": stage | {"eval_strategy": "epoch"},
        "align": dict(stage),
        "output_dir": str(place / name),
        "seed": 3,
    } | changes


def quick(place: Path, name: str, **changes: Any) -> dict[str, Any]:
    """A run of two steps a stage, every weight trained."""
    config = settings(place, name, adapter=None)
    for stage in ("sft", "align"):
        config[stage] |= {"max_steps": 2, "eval_strategy": "no"}
    return config | changes


def run(config: dict[str, Any], **options: Any) -> Path:
    """The run, silent."""
    return pipeline.run(parse_config(config), **{"say": lambda line: None, **options})


def outcome(folder: Path) -> dict[str, Any]:
    """Everything of a finished run that does not depend on when and where it ran."""
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    weights = folder.glob("**/final/*.safetensors")
    return {
        "models": {str(path.relative_to(folder)): path.read_bytes() for path in weights},
        "metrics": [_timeless(json.loads(line)) for line in lines],
        "stages": _timeless(record["stages"]),
        "verdicts": record["verdicts"],
        "data": _timeless(record["data"]),
        "start": record["start"],
        "scores": (folder / "held_out_before.safetensors").read_bytes(),
        "finished": "finished" in record,
    }


def require_same(folder: Path, whole: dict[str, Any]) -> None:
    """The run in `folder` came to what `outcome` says of another."""
    found = outcome(folder)
    assert found["models"].keys() == {"final/model.safetensors", "sft/final/model.safetensors"}
    for part, value in found.items():
        assert value == whole[part], part


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if not any(word in k for word in TIMES)}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def forked(work: Callable[[], object], output: Path) -> int:
    """Do `work` in a forked process; returns its number. It exits as the command line would.

    A fork has everything imported already; signals and kills are as real as in a process of its own.

    Args:
        output: takes what it prints.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            work()
            code = 0
        except HoldfastError as error:
            print(f"error: {error}", file=sys.stderr)
            code = error.exit_code
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def ended(process: int) -> int:
    """Wait for the process; its exit code, negative where a signal killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
