"""Two processes and their files: what is done once, who writes, and how a fault of one becomes the end of both."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.faults.pair import run_pair
from tests.faults.run_cases import disk_is_full, not_a_number, whole_run

HERE = "tests.faults.run_cases"
RUNS = [("lora-ddp", "ddp"), ("full-fsdp2", "fsdp2")]
NANS = [("raise", "ddp"), ("skip", "ddp"), ("raise", "fsdp2"), ("skip", "fsdp2")]
OTHERS = ["outcomes_are_shared", "bad_rows_are_set_aside_once", "reference_of_one", "disk_is_full"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def of_two(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes says of every case."""
    cases = [f"whole_run {name} {how}" for name, how in RUNS]
    cases += [f"one_is_told_to_end {how}" for how in ("ddp", "fsdp2")]
    cases += [*OTHERS, *(f"not_a_number {mode} {how}" for mode, how in NANS)]
    results = run_pair(folder / "two", [f"{HERE}:{case}" for case in cases], f"{HERE}:only_one_fails")
    return [{key.partition(":")[2]: value for key, value in own.items()} for own in results]


@pytest.fixture(scope="module")
def of_one(folder: Path) -> Any:
    """A case in this process."""
    (folder / "one").mkdir()

    def result(case: Any, *arguments: str) -> Any:
        before = Path.cwd()
        os.chdir(folder / "one")
        try:
            return case(*arguments)
        finally:
            os.chdir(before)

    return result


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("name", "how"), RUNS)
def test_a_run_of_two_processes(
    name: str, how: str, folder: Path, of_one: Any, of_two: list[dict[str, Any]]
) -> None:
    alone = of_one(whole_run, name, "ddp")
    first, second = (result[f"whole_run {name} {how}"] for result in of_two)
    # rows are checked and tokenized by one of them, which speaks for both
    assert first["main"]
    assert not second["main"]
    assert second["made"] == second["said"] == []
    assert len(first["made"]) == len(alone["made"])
    one, two = folder / "one" / name / "run", folder / "two" / name / "run"
    assert len(first["said"]) == len(alone["said"])
    own, expected = (lines_of(run / "metrics.jsonl") for run in (two, one))
    assert [(line["stage"], line["step"]) for line in own] == [
        (line["stage"], line["step"]) for line in expected
    ]
    for line, wanted in zip(own, expected, strict=True):
        assert line.keys() == wanted.keys()
        for key in wanted.keys() & {
            "loss",
            "mean_logps/target",
            "logps/chosen",
            "rewards/margins",
            "num_tokens",
        }:
            assert line[key] == pytest.approx(wanted[key], rel=1e-4, abs=1e-4), key
    quarantined = [(line["where"].rpartition(":")[2]) for line in lines_of(two / "quarantine.jsonl")]
    assert quarantined == ["11", "12"]
    record, wanted = (json.loads((run / "run.json").read_text()) for run in (two, one))
    assert record["verdicts"] == wanted["verdicts"]
    for stage in ("sft", "align"):
        assert record["stages"][stage]["steps"] == 3
        assert record["stages"][stage]["training_loss"] == pytest.approx(
            wanted["stages"][stage]["training_loss"], rel=1e-4
        )
    weights, as_one = (AutoModelForCausalLM.from_pretrained(run / "final").state_dict() for run in (two, one))
    assert weights.keys() == as_one.keys()
    for key, value in as_one.items():
        torch.testing.assert_close(weights[key], value, rtol=0, atol=2e-4, msg=key)
    assert not (two / "run.lock").exists()


def test_outcomes_are_shared(of_two: list[dict[str, Any]]) -> None:
    for rank, own in enumerate(of_two):
        found = own["outcomes_are_shared"]
        assert found["together"]
        assert found["once"] == found["once_a_node"] == "from 0"
        assert found["none"] is None
        assert found["after"] == "again from 0"
        assert found["failed"]["kind"] == ("OSError" if rank == 0 else "PeerError")
        assert "of process 0" in found["failed"]["message"]
        # a source that cannot be read is one clear error in both, with the same exit code
        assert found["source"]["kind"] == ("DataError" if rank == 0 else "PeerError")
        assert "no-such-rows.jsonl" in found["source"]["message"]
        assert found["source"]["exit_code"] == 2


def test_bad_rows_are_set_aside_once(folder: Path, of_two: list[dict[str, Any]]) -> None:
    for own in of_two:
        assert own["bad_rows_are_set_aside_once"]["rows"] == 20
        strict = own["bad_rows_are_set_aside_once"]["strict"]
        assert (strict["kind"], strict["exit_code"]) == ("InvalidRows", 2)
    # of the training rows and of the held-out ones, which are the same here
    assert len(lines_of(folder / "two" / "lenient" / "out" / "quarantine.jsonl")) == 2


def test_a_reference_that_one_process_finds_serves_both(of_two: list[dict[str, Any]]) -> None:
    values = [own["reference_of_one"] for own in of_two]
    assert values[0] == values[1]
    first, second = values[0]
    assert first == second
    assert len(first) == 23


@pytest.mark.parametrize(("mode", "how"), NANS)
def test_not_a_number_in_one_process(
    mode: str, how: str, folder: Path, of_one: Any, of_two: list[dict[str, Any]]
) -> None:
    first, second = (own[f"not_a_number {mode} {how}"] for own in of_two)
    if mode == "raise":
        for own in (first, second):
            assert (own["kind"], own["exit_code"], own["step"]) == ("NonFiniteError", 3, 1)
        assert first["message"] == second["message"]
        written = json.loads(
            (folder / "two" / f"nan-{mode}-{how}" / "out" / "nonfinite-step-2.json").read_text()
        )
        assert len(written["rows"]) == 12
        assert {row["process"] for row in written["rows"]} == {0, 1}
    else:
        alone = of_one(not_a_number, mode, "ddp") if how == "ddp" else None
        assert "kind" not in first
        assert "kind" not in second
        assert first["step"] == second["step"] == 4
        if alone is not None:  # the same step is left out, and the rest is the same
            assert first["weights"] == pytest.approx(alone["weights"], rel=1e-9)
            assert second["weights"] == pytest.approx(first["weights"], rel=0, abs=0)


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_a_signal_to_one_process_is_one_to_both(how: str, folder: Path, of_two: list[dict[str, Any]]) -> None:
    for own in of_two:
        found = own[f"one_is_told_to_end {how}"]
        assert (found["kind"], found["exit_code"], found["step"]) == ("Interrupted", 143, 2)
        assert "checkpoint-2" in found["message"]
    out = folder / "two" / f"told-{how}" / "out"
    assert [path.name for path in out.glob("*checkpoint*")] == ["checkpoint-2"]


def test_a_disk_that_is_full_on_the_main_process(
    folder: Path, of_one: Any, of_two: list[dict[str, Any]]
) -> None:
    alone = of_one(disk_is_full)
    assert alone["kind"] == "CheckpointError"
    for own in of_two:
        found = own["disk_is_full"]
        assert (found["exit_code"], found["step"]) == (2, 2)
        assert "No space left on device" in found["message"]
    out = folder / "two" / "full" / "out"
    assert [path.name for path in sorted(out.glob("*checkpoint*"))] == ["checkpoint-1"]


def test_a_process_that_fails_alone_ends_the_other(of_two: list[dict[str, Any]]) -> None:
    """The other one waits for gradients that never come: it ends when its peer is gone, without a launcher too."""
    other, own = (result["only_one_fails"]["traceback"] for result in of_two)
    assert "ZeroDivisionError" in own
    assert "ZeroDivisionError" not in other
    # which one depends on what was under way between the two when the peer's socket went
    gone = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    assert any(words in other for words in gone), other
