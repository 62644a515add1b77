"""`holdfast` as a user runs it, in this process; and a pickle that leaves a mark where it is loaded."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from holdfast.cli.main import app
from holdfast.errors import HoldfastError

# One step on four rows, every weight trained; what a test sets itself comes behind, and wins.
QUICK = (
    "max_steps=1 per_device_train_batch_size=4 logging_steps=1 use_cpu=true disable_tqdm=true save_strategy='no' "
    "adapter=null data.max_length=64 data.eval_fraction=0 dataset_num_proc=1"
).split()


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, what it said, and the error's message (empty where there is none)."""

    code: int
    said: str
    error: str


def holdfast(*arguments: str | Path) -> Ended:
    """Run a command. What is no error of a user's goes through: in a terminal it would be a traceback."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    error = result.exception
    if error is None or isinstance(error, SystemExit):
        return Ended(result.exit_code, result.stdout, "")
    if not isinstance(error, HoldfastError):
        raise error
    return Ended(error.exit_code, result.stdout, str(error))


def stage(verb: str, start: str | Path, data: str | Path, out: Path, *settings: str) -> Ended:
    """`holdfast sft` or `holdfast align`, quickly."""
    return holdfast(verb, start, data, *QUICK, *settings, "-o", out)


def record_of(out: Path) -> dict[str, Any]:
    """A run's record."""
    record: dict[str, Any] = json.loads((out / "run.json").read_text(encoding="utf-8"))
    return record


def losses_of(out: Path) -> list[float]:
    """Every loss in a run's metrics."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def copied(start: Path, folder: Path) -> Path:
    """A copy of a model folder, to be spoiled."""
    shutil.copytree(start, folder)
    return folder


def set_keys(path: Path, **keys: Any) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | keys), encoding="utf-8")


class Bomb:
    """Loading it from a pickle makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> Any:
        return open, (self.mark, "w")

    def as_pickle(self) -> bytes:
        """As `pickle` writes it."""
        return pickle.dumps(self)

    def as_torch(self, path: Path) -> None:
        """Into `path` as PyTorch writes it."""
        torch.save({"weight": self}, path)

    def went_off(self) -> bool:
        """Whether it was loaded."""
        return Path(self.mark).exists()


def refuse_to_load_models(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From here on no model can be loaded; the names of those that were asked for."""
    asked: list[str] = []

    def refuse(name: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(str(name))
        raise AssertionError(f"{name} was loaded")

    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    return asked


def lines_named(error: str, file: Path) -> Sequence[int]:
    """The lines of a file that an error names, in its order."""
    marked = [line.strip() for line in error.splitlines() if line.startswith(f"  {file}:")]
    return [int(line.removeprefix(f"{file}:").partition(":")[0]) for line in marked]
