"""Two real processes that train together on CPUs, and what they are made to do.

A pair costs two interpreters, so one pair runs many cases and writes down what came of each:

    results = run_pair(folder, ["tests.faults.training_cases:train sft-full fsdp2", ...])
    results[0]["tests.faults.training_cases:train sft-full fsdp2"]     # what the function returned in process 0

A case is a function and its arguments, all words. An error of a case is written down too, and ends the pair.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_pair(
    folder: Path, cases: Sequence[str], environment: Mapping[str, str] | None = None
) -> list[subprocess.Popen[str]]:
    """Two processes at `cases`, as a launcher would start them; their output goes to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.json").write_text(json.dumps(list(cases)), encoding="utf-8")
    port = str(free_port())
    started = []
    for rank in range(2):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        own = os.environ | {name: str(value) for name, value in place.items()}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **(environment or {})}
        with (folder / f"output-{rank}.txt").open("w", encoding="utf-8") as output:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.faults.pair", str(folder)],
                    cwd=REPOSITORY,
                    env=own,
                    text=True,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    return started


def end_of_pair(pair: Sequence[subprocess.Popen[str]], timeout: float) -> list[int]:
    """Their exit codes. Whoever is still there after `timeout` seconds hangs: it is killed, and fails the test."""
    try:
        return [process.wait(timeout) for process in pair]
    finally:
        for process in pair:
            process.kill()
            process.wait()


def run_pair(
    folder: Path, cases: Sequence[str], failing: str | None = None, timeout: float = 300
) -> list[dict[str, Any]]:
    """What the cases returned, in each of two processes; an error of one is one here.

    Args:
        failing: a last case that must end both processes with an error; its traceback is its result.
    """
    codes = end_of_pair(start_pair(folder, [*cases, *([failing] if failing else [])]), timeout)
    results = [json.loads((folder / f"results-{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    for rank, result in enumerate(results):
        for case, found in result.items():
            if isinstance(found, dict) and "traceback" in found and case != failing:
                raise AssertionError(f"{case}, process {rank}: {found['traceback']}")
    expected = [1, 1] if failing else [0, 0]
    assert codes == expected, [(folder / f"output-{rank}.txt").read_text() for rank in range(2)]
    return results


def run_case(case: str) -> Any:
    """Call the function that a case names, with its arguments."""
    name, *arguments = case.split()
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)(*arguments)


@contextlib.contextmanager
def sharded_on_cpu(again: bool = False) -> Iterator[None]:
    """FSDP 2 by Accelerate's own environment variables. Accelerate shards on accelerators alone: it is told otherwise.

    Args:
        again: layers are computed again in the backward.
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    settings = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
        "FSDP_ACTIVATION_CHECKPOINTING": str(again).lower(),
    }
    own = AcceleratorState.__init__

    def as_on_accelerators(self: Any, *args: Any, **kwargs: Any) -> None:
        known = PartialState._shared_state
        if known.get("distributed_type") == DistributedType.MULTI_CPU:
            known["distributed_type"] = DistributedType.MULTI_GPU
        own(self, *args, **kwargs)

    os.environ |= settings
    AcceleratorState.__init__ = as_on_accelerators
    try:
        yield
    finally:
        AcceleratorState.__init__ = own
        for name in settings:
            del os.environ[name]


def work(folder: Path) -> None:
    """One process's work: every case, its result written at once."""
    os.chdir(folder)
    rank, results = os.environ["RANK"], {}
    failed = False
    for case in json.loads(Path("cases.json").read_text(encoding="utf-8")):
        try:
            results[case] = run_case(case)
        except Exception:
            results[case] = {"traceback": traceback.format_exc()}
            failed = True
        Path(f"results-{rank}.json").write_text(json.dumps(results), encoding="utf-8")
        if failed:
            os._exit(1)  # the other one may wait for this one
    from accelerate import PartialState

    PartialState().destroy_process_group()


if __name__ == "__main__":
    work(Path(sys.argv[1]))
