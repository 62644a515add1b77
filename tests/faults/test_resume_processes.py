"""Two real processes (gloo), with copies of a model (DDP) or shares of it (FSDP 2), go on from what they have saved;
and they fail together."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from holdfast.errors import CheckpointError, PeerError
from tests.faults.pair import run_pair, sharded_on_cpu
from tests.faults.runs import little_to_collect, run, trainer_of

HERE = "tests.faults.test_resume_processes"
SHARED: dict[str, Callable[[], AbstractContextManager[None]]] = {"ddp": nullcontext, "fsdp": sharded_on_cpu}
HALF = {"per_device_train_batch_size": 1}  # of a micro-batch each: the global batch stays
STILL: dict[str, Any] = {
    "lora": False,
    "model": {"attention_dropout": 0.0},
    "save_strategy": "no",
    "logging_steps": 1,
    "objective": {"name": "threshold", "base": {"name": "adaptive", "weak": 0.0}, "low_quantile": 0.1},
}


# ---- what the two processes do, in a folder of their own


def go_on(shared: str, kind: str) -> str:
    """With dropout, each with its own random numbers: the same to the last bit, which is asserted there."""
    lora, here = kind == "slime", Path(f"go-on-{shared}-{kind}").resolve()
    torch.set_num_threads(1)
    with SHARED[shared](), little_to_collect():
        whole_trainer = trainer_of(kind, here / "whole", lora=lora, **HALF)
        # As held-out rows are scored before training; the others need not do it again.
        with whole_trainer.scoring():
            pass
        whole = run(whole_trainer)
        assert isinstance(whole_trainer.model, FSDPModule) == (shared == "fsdp")
        for step in (1, 5):  # 5: in the second epoch, which has an order of its own
            resumed = trainer_of(kind, here / f"from-{step}", lora=lora, save_strategy="no", **HALF)
            after = run(resumed, here / "whole" / f"checkpoint-{step}")
            after.require_same(whole)
            assert after.rows[0][0] == step + 1
    return "same"


def fail_together(shared: str) -> list[str]:
    """What fails for one ends both, with the same message."""
    two: dict[str, Any] = {"lora": True, **HALF}
    here, fsync = Path(f"fail-{shared}").resolve(), os.fsync
    with SHARED[shared](), little_to_collect():
        with pytest.raises((CheckpointError, PeerError), match="there is no checkpoint in"):
            trainer_of("sft", here, **two).train(resume_from_checkpoint=True)
        trainer = trainer_of("sft", here, save_steps=2, **two)

        def full(handle: int) -> None:
            if trainer.state.global_step == 4:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(handle)

        if trainer.is_world_process_zero():
            os.fsync = full
        try:
            with pytest.raises(
                (CheckpointError, PeerError), match="checkpoint-4 cannot be written .* No space left"
            ):
                trainer.train()
        finally:
            os.fsync = fsync
        other = trainer_of("sft", here, seed=1, **two)
        with pytest.raises((CheckpointError, PeerError), match="seed: 42 in the checkpoint, 1 now"):
            other.train(resume_from_checkpoint="auto")
        trainer_of("sft", here, save_steps=2, **two).train(resume_from_checkpoint="auto")
    return sorted(path.name for path in here.glob("checkpoint-*"))


def measure() -> dict[str, Any]:
    """Percentiles before the first step, and what each step follows from."""
    half = HALF if int(os.environ.get("WORLD_SIZE", "1")) > 1 else {}
    trainer = trainer_of("sft", Path("measure").resolve(), **STILL, **half)
    trainer.train()
    names = ("loss", "capability", "alpha", "tokens/kept")
    logged = [[log[name] for name in names] for log in trainer.state.log_history if "loss" in log]
    return {"percentiles": list(trainer.percentiles.values), "logged": logged}


GOING_ON = [f"go_on {shared} {kind}" for shared in SHARED for kind in ("sft", "slime")]
FAILING = [f"fail_together {shared}" for shared in SHARED]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two says of each case."""
    cases = [f"{HERE}:{case}" for case in [*GOING_ON, *FAILING, "measure"]]
    return run_pair(tmp_path_factory.mktemp("two"), cases)


@pytest.mark.parametrize("case", GOING_ON)
def test_two_go_on_from_two(results: list[dict[str, Any]], case: str) -> None:
    assert [own[f"{HERE}:{case}"] for own in results] == ["same", "same"]


@pytest.mark.parametrize("case", FAILING)
def test_what_fails_for_one_fails_for_both(results: list[dict[str, Any]], case: str) -> None:
    assert results[0][f"{HERE}:{case}"] == [f"checkpoint-{step}" for step in (2, 4, 6)]


def test_what_the_model_knows_is_measured_by_both(
    results: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one process has it."""
    monkeypatch.chdir(tmp_path)
    alone = measure()
    for own in results:
        torch.testing.assert_close(own[f"{HERE}:measure"], alone, rtol=1e-5, atol=1e-7)
    assert len({capability for _, capability, _, _ in alone["logged"]}) == 6
