"""What two processes do with files and faults: whole runs, and runs that cannot go on (see `tests.faults.pair`)."""

from __future__ import annotations

import errno
import json
import logging
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import PartialState
from torch import Tensor

from holdfast.data import intake
from holdfast.data.examine import checker
from holdfast.data.intake import take_in
from holdfast.errors import HoldfastError
from holdfast.experiments.config import parse_config
from holdfast.experiments.pipeline import run
from holdfast.ranks import once, once_a_node, together
from holdfast.training.checkpoint import CheckpointStore
from tests.faults.training_cases import CASES, LORA, Case, launched, trainer_of, watch_rows
from tests.training.conftest import rows


def join() -> PartialState:
    """Be one of two, as the trainers' settings make it."""
    return PartialState(cpu=True)


def outcome(action: Callable[[], Any]) -> dict[str, Any]:
    """What an error says of itself."""
    try:
        action()
    except Exception as error:
        code = error.exit_code if isinstance(error, HoldfastError) else 1
        return {"kind": type(error).__name__, "message": str(error), "exit_code": code}
    return {}


def settings(folder: Path, adapter: dict[str, Any] | None) -> dict[str, Any]:
    """A run of both stages, a few steps each, on rows of which two are bad."""
    source = folder / "rows.jsonl"
    lines = [json.dumps(row) for row in rows(60)]
    lines[10:10] = ["{not json", '{"prompt": "x", "chosen": "", "rejected": "y"}']
    text = "\n".join(lines) + "\n"
    if not source.exists() or source.read_text(encoding="utf-8") != text:
        source.write_text(text, encoding="utf-8")
    world = PartialState().num_processes
    stage = {
        "max_steps": 3,
        "per_device_train_batch_size": 8 // world,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "dataset_num_proc": 1,
    }
    return {
        "model": {"from_scratch": {"family": "llama", "vocab_size": 320, "hidden_size": 32, "layers": 2}},
        "data": {"source": str(source), "eval_fraction": 0.25, "max_length": 64, "validation": "lenient"},
        "adapter": adapter,
        "sft": dict(stage),
        "align": dict(stage),
        "output_dir": str(folder / "run"),
    }


def whole_run(name: str, how: str) -> dict[str, Any]:
    """`holdfast run` of both stages."""
    folder = Path(name).resolve()
    joined = join()
    once_a_node(lambda: folder.mkdir())
    config = parse_config(settings(folder, LORA | {"dropout": 0.0} if "lora" in name else None))
    said: list[str] = []
    made: list[str] = []
    make = intake._make

    def watched(path: Path, *args: Any) -> None:
        made.append(path.name)
        make(path, *args)

    with launched(how), patch.object(intake, "_make", watched):
        run(config, say=said.append)
    return {"made": made, "said": said, "main": joined.is_main_process}


def outcomes_are_shared() -> dict[str, Any]:
    """The first process's value, or error, in both."""
    state = join()
    mine = state.process_index

    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", f"of process {mine}")

    source = Path("no-such-rows.jsonl")
    return {
        "together": together(),
        "once": once(lambda: f"from {mine}"),
        "once_a_node": once_a_node(lambda: f"from {mine}"),
        "none": once(lambda: None),
        "failed": outcome(lambda: once(fail)),
        "source": outcome(lambda: take_in(source, checker("preference", None, None), num_proc=1)),
        "after": once(lambda: f"again from {mine}"),
    }


def bad_rows_are_set_aside_once() -> dict[str, Any]:
    """A trainer in lenient mode, in a folder that both processes have; and one in strict mode."""
    join()
    folder = Path("lenient").resolve()
    case = Case("llama", "slime")
    bad = [*rows(20), {"prompt": "a", "chosen": " ", "rejected": "b"}]

    def build(validation: str) -> Any:
        with patch("tests.faults.training_cases.rows", lambda count: bad):
            return trainer_of(case, folder, validation=validation)

    trainer = build("lenient")
    return {"rows": len(trainer.train_dataset), "strict": outcome(lambda: build("strict"))}


def reference_of_one() -> list[list[float]]:
    """The reference is kept where the main process alone finds it; both use it."""
    state = join()
    shared = Path("reference").resolve()
    values = []
    for attempt in range(2):
        if attempt:
            # the other process's cache is empty now, as on another node
            own = shared / f"cache-{state.process_index}"
            once_a_node(lambda: shutil.copytree(shared / "cache", shared / "cache-0"))
            trainer = trainer_of(CASES["dpo-full"], shared, cache_dir=str(own))
        else:
            trainer = trainer_of(CASES["dpo-full"], shared)
        values.append(trainer.train_dataset["reference_chosen"][:])
    return values


def not_a_number(mode: str, how: str) -> dict[str, Any]:
    """In the second step, one micro-batch of the second process has a loss of NaN."""
    with launched(how):
        case = CASES["sft-kept" if mode == "skip" else "slime-lora"]
        trainer = trainer_of(case, Path(f"nan-{mode}-{how}").resolve(), on_nonfinite=mode)
        watch_rows(trainer)
        measure = trainer.compute_loss

        def poisoned(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            loss = measure(model, inputs, *args, **kwargs)
            here = trainer.args.process_index == trainer.args.world_size - 1
            return loss * torch.nan if here and trainer.state.global_step == 1 else loss

        trainer.compute_loss = poisoned
        result = outcome(trainer.train)
        whole = trainer.whole_model()
    weights = [] if whole is None else [value.sum().item() for value in whole.parameters()]
    return result | {"step": trainer.state.global_step, "weights": weights}


def disk_is_full() -> dict[str, Any]:
    """The main process cannot write the second checkpoint."""
    trainer = trainer_of(CASES["sft-lora"], Path("full").resolve(), save_strategy="steps", save_steps=1)
    commit = CheckpointStore._commit

    def full(store: CheckpointStore, step: int) -> Path:
        if step == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return commit(store, step)

    with patch.object(CheckpointStore, "_commit", full):
        result = outcome(trainer.train)
    return result | {"step": trainer.state.global_step}


def one_is_told_to_end(how: str) -> dict[str, Any]:
    """A scheduler's signal reaches the second process alone, in its second step."""
    with launched(how):
        trainer = trainer_of(CASES["slime-lora"], Path(f"told-{how}").resolve())
        step = trainer.training_step

        def told(*args: Any, **kwargs: Any) -> Tensor:
            if trainer.args.process_index == 1 and trainer.state.global_step == 1:
                signal.raise_signal(signal.SIGTERM)
            return step(*args, **kwargs)

        trainer.training_step = told
        result = outcome(trainer.train)
    return result | {"step": trainer.state.global_step}


def only_one_fails() -> None:
    """An error of one process's own, while the other waits for its gradients: what a launcher must see end."""
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    trainer = trainer_of(CASES["sft-full"], Path("alone").resolve())
    if trainer.args.process_index == 1:
        trainer.compute_loss = lambda *args, **kwargs: 1 // 0
    trainer.train()
