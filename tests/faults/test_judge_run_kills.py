"""Judged runs that are killed anywhere go on without a loss."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.small_benchmarks import (
    write_rows,
)
from tests.faults.judged_folders import Games, Talk, label, paid, rating, rows_of
from tests.faults.moments import Moments
from tests.faults.test_judge_kill import ended_by, in_a_process


def without_times(path: Path) -> list[dict[str, Any]]:
    return [row | {"tstamp": 0} for row in rows_of(path)]


def results_of(out: Path) -> dict[str, Any]:
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    del found["created"]
    return dict(found)


def killed_at(moment: int, work: Callable[[], object]) -> bool:
    """Whether a process that does `work` came to this moment, at which it is killed."""

    def at(number: int, _kind: str) -> None:
        if number == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched() -> None:
        Moments(at).watch()
        work()

    code = ended_by(in_a_process(watched))
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.parametrize("kind", [Talk, Games])
def test_killed_anywhere_a_run_goes_on_without_a_loss(tmp_path: Path, kind: type[Talk] | type[Games]) -> None:
    said = rating if kind is Talk else label

    def prepared(name: str) -> Talk | Games:
        """A folder with rows of the original tool: three that fit, and one that does not."""
        run = kind(tmp_path / name)
        rows: Sequence[dict[str, Any]] = run.original()[:4]
        strange = json.loads(
            json.dumps(rows[3]).replace("answer 4.1", "another").replace("q3 by m", "another")
        )
        write_rows(run.file, [*rows[:3], strange, *(row | {"model": "n"} for row in rows)])
        return run

    calm = prepared("calm")
    log = tmp_path / "calm.log"
    calm.run(paid(said, log), judgings=2)
    needed = sorted(log.read_text().splitlines())
    moment, kills, step = 1, 0, 8
    while True:
        run, log = prepared(f"at-{moment}"), tmp_path / f"{moment}.log"
        came = killed_at(moment, lambda run=run, log=log: run.run(paid(said, log), judgings=2))
        journal = run.out / "judge_replies.jsonl"
        before = journal.read_bytes() if journal.exists() else b""
        run.run(paid(said, log), judgings=2)
        assert journal.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
        asked = log.read_text().splitlines()
        # at most the one reply that was under way is paid for again
        assert len(asked) <= len(needed) + came
        assert sorted(set(asked)) == sorted(set(needed))
        assert results_of(run.out) == results_of(calm.out)
        name = run.file.relative_to(run.out)
        assert without_times(run.file) == without_times(calm.file)
        assert rows_of(run.out / "set_aside" / name) == rows_of(calm.out / "set_aside" / name)
        if not came:
            break
        kills += 1
        moment += step
    assert kills > 6
