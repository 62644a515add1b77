"""Two real processes (gloo), with copies of a model (DDP) or shares of it (FSDP 2), go on from what they have saved;
and they fail together."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import distributed
from torch.distributed.fsdp import FSDPModule

from holdfast.errors import CheckpointError, PeerError
from tests.faults.pair import free_port, sharded_on_cpu
from tests.faults.runs import little_to_collect, run, trainer_of

WORLD = 2
SHARED: dict[str, Callable[[], AbstractContextManager[None]]] = {"ddp": nullcontext, "fsdp": sharded_on_cpu}
HALF = {"per_device_train_batch_size": 1}  # of a micro-batch each: the global batch stays


@pytest.fixture(autouse=True, scope="module")
def _fast() -> Iterator[None]:
    with little_to_collect():
        yield


def in_two(
    work: Callable[[int], object], folder: Path, sharing: Callable[[], AbstractContextManager[None]]
) -> None:
    """Do `work` in each of two processes that make one run; an error in one is an error here."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    children = [_start(rank, port, work, folder, sharing) for rank in range(WORLD)]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert statuses == [0, 0], "".join((folder / f"said-{rank}").read_text() for rank in range(WORLD))


def _start(
    rank: int,
    port: int,
    work: Callable[[int], object],
    folder: Path,
    sharing: Callable[[], AbstractContextManager[None]],
) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with (folder / f"said-{rank}").open("w") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(WORLD),
            "LOCAL_WORLD_SIZE": str(WORLD),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
        }
        torch.set_num_threads(1)
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
        with sharing():
            work(rank)
        distributed.barrier()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
    raise AssertionError("not reached")


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("shared", SHARED)
def test_two_go_on_from_two(tmp_path: Path, shared: str, lora: bool) -> None:
    """With dropout, each with its own random numbers: the same to the last bit."""
    kind = "slime" if lora else "sft"

    def work(rank: int) -> None:
        whole_trainer = trainer_of(kind, tmp_path / "whole", lora=lora, **HALF)
        with (
            whole_trainer.scoring()
        ):  # as held-out rows are, before training; the others need not do it again
            pass
        whole = run(whole_trainer)
        assert isinstance(whole_trainer.model, FSDPModule) == (shared == "fsdp")
        for step in (1, 5):  # 5: in the second epoch, which has an order of its own
            resumed = trainer_of(kind, tmp_path / f"from-{step}", lora=lora, save_strategy="no", **HALF)
            after = run(resumed, tmp_path / "whole" / f"checkpoint-{step}")
            after.require_same(whole)
            assert after.rows[0][0] == step + 1

    in_two(work, tmp_path / "said", SHARED[shared])


@pytest.mark.parametrize("shared", SHARED)
def test_what_fails_for_one_fails_for_both(tmp_path: Path, shared: str) -> None:
    """And ends them, with the same message."""
    two: dict[str, Any] = {"lora": True, **HALF}
    fsync = os.fsync

    def work(rank: int) -> None:
        with pytest.raises((CheckpointError, PeerError), match="there is no checkpoint in"):
            trainer_of("sft", tmp_path / "run", **two).train(resume_from_checkpoint=True)
        trainer = trainer_of("sft", tmp_path / "run", save_steps=2, **two)

        def full(handle: int) -> None:
            if trainer.state.global_step == 4:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(handle)

        if rank == 0:
            os.fsync = full
        with pytest.raises(
            (CheckpointError, PeerError), match="checkpoint-4 cannot be written .* No space left"
        ):
            trainer.train()
        os.fsync = fsync
        other = trainer_of("sft", tmp_path / "run", seed=1, **two)
        with pytest.raises((CheckpointError, PeerError), match="seed: 42 in the checkpoint, 1 now"):
            other.train(resume_from_checkpoint="auto")
        last = trainer_of("sft", tmp_path / "run", save_steps=2, **two)
        last.train(resume_from_checkpoint="auto")

    in_two(work, tmp_path / "said", SHARED[shared])
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == [
        f"checkpoint-{step}" for step in (2, 4, 6)
    ]


def test_what_the_model_knows_is_measured_by_both(tmp_path: Path) -> None:
    """Percentiles before the first step, capability after each: as one process has them."""
    still: dict[str, Any] = {
        "lora": False,
        "model": {"attention_dropout": 0.0},
        "save_strategy": "no",
        "logging_steps": 1,
        "objective": {"name": "threshold", "base": {"name": "adaptive", "weak": 0.0}, "low_quantile": 0.1},
    }

    def train(folder: str, **more: Any) -> dict[str, Any]:
        trainer = trainer_of("sft", tmp_path / folder, **still, **more)
        trainer.train()
        names = ("loss", "capability", "alpha", "tokens/kept")
        logged = [[log[name] for name in names] for log in trainer.state.log_history if "loss" in log]
        return {"percentiles": list(trainer.percentiles.values), "logged": logged}

    alone = train("one")

    def work(rank: int) -> None:
        torch.testing.assert_close(train("two", **HALF), alone, rtol=1e-5, atol=1e-7)

    in_two(work, tmp_path / "said", nullcontext)
    assert len({capability for _, capability, _, _ in alone["logged"]}) == 6
