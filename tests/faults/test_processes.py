"""Two processes train what one process trains: the same rows, losses, gradients, metrics and weights."""

from __future__ import annotations

import math
import os
import re
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.faults.pair import run_pair
from tests.faults.training_cases import CASES, train

HERE = "tests.faults.training_cases"
COURSES = [(name, how) for how in ("ddp", "fsdp2") for name in CASES] + [("sft-full", "fsdp2-again")]
OF_THE_CLOCK = re.compile(r".*(_per_second|_runtime|_time)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def of_two(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes says of every case."""
    cases = [f"{HERE}:train {name} {how}" for name, how in COURSES]
    cases += [f"{HERE}:train_in_half_precision", f"{HERE}:evaluate_in_half_precision"]
    return run_pair(folder / "two", cases)


@pytest.fixture(scope="module")
def of_one(folder: Path) -> Any:
    """What one process says of a case, computed once."""
    (folder / "one").mkdir()
    known: dict[str, Any] = {}

    def result(name: str) -> Any:
        if name not in known:
            before = Path.cwd()
            os.chdir(folder / "one")
            try:
                known[name] = train(name)
            finally:
                os.chdir(before)
        return known[name]

    return result


@pytest.mark.parametrize(("name", "how"), COURSES)
def test_two_processes_are_one(
    name: str, how: str, folder: Path, of_one: Any, of_two: list[dict[str, Any]]
) -> None:
    one, two = of_one(name), [result[f"{HERE}:train {name} {how}"] for result in of_two]
    assert one["distributed"] == "DistributedType.NO"
    assert {own["distributed"] for own in two} == {
        "DistributedType.MULTI_CPU" if how == "ddp" else "DistributedType.FSDP"
    }
    # the same rows in the same order: the processes' micro-batches side by side are the one process's
    together = [
        [first[0], *first[1:], *second[1:]] for first, second in zip_longest(two[0]["rows"], two[1]["rows"])
    ]
    assert together == one["rows"]
    assert len(one["rows"][0]) == 5, "a micro-batch of four rows, and its step"
    for key in ("before", "after"):
        assert_same_numbers(two[0][key], one[key])
    assert len(two[0]["log"]) == len(one["log"])
    for found, expected in zip(two[0]["log"], one["log"], strict=True):
        assert_same_numbers(found, expected)
    found, expected = (
        load_file(folder / which / f"{name}-{how if which == 'two' else 'ddp'}.safetensors")
        for which in ("two", "one")
    )
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        scale = value.abs().max().clamp(min=1e-3)
        # some families' norms compute in float32 whatever the model's dtype
        exact = key.startswith("0/") and CASES[name].family != "gemma3"
        torch.testing.assert_close(
            found[key] / scale, value / scale, rtol=0, atol=1e-12 if exact else 1e-6, msg=key
        )


def test_the_cases_can_fail(of_one: Any) -> None:
    """Rows come in an order of their own in each epoch, the last step of each has few, and thresholds keep some."""
    for name, case in CASES.items():
        result = of_one(name)
        by_step: dict[int, list[int]] = {}
        for step, *numbers in result["rows"]:
            by_step.setdefault(step, []).extend(numbers)
        left = case.rows % 12
        assert [len(numbers) for numbers in by_step.values()] == [12] * (case.rows // 12) + [left] + [12] * (
            case.rows // 12
        ) + [left]
        half = len(by_step) // 2
        epochs = [
            list(chain.from_iterable(by_step[step] for step in steps))
            for steps in (range(half), range(half, 2 * half))
        ]
        assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(case.rows))
        assert epochs[0] != epochs[1]
        if isinstance(case.objective, dict):
            assert 0.1 < result["log"][0]["tokens/kept"] < 0.9


def test_half_precision_keeps_log_probs_and_sums_wide(of_two: list[dict[str, Any]]) -> None:
    for result in of_two:
        found = result[f"{HERE}:train_in_half_precision"]
        assert found["param_dtype"] == "torch.bfloat16"
        assert found["reduce_dtype"] == "torch.float32"
        assert found["logps"] == "torch.float32"
        assert found["finer_than_half"]
        assert found["trained"] == ["torch.float32"]
        assert math.isfinite(found["loss"])


def test_evaluation_changes_nothing(of_two: list[dict[str, Any]]) -> None:
    """Accelerate would leave a model that is evaluated before training unwrapped: each process would train alone."""
    first, second = (own[f"{HERE}:evaluate_in_half_precision"] for own in of_two)
    assert first == second
    alone, after_one, with_some = first
    assert alone == after_one == with_some
    assert len(alone) == 3


def assert_same_numbers(found: dict[str, float], expected: dict[str, float]) -> None:
    """The same metrics, but for those of the clock."""
    found, expected = (
        {name: value for name, value in own.items() if not OF_THE_CLOCK.fullmatch(name)}
        for own in (found, expected)
    )
    assert found.keys() == expected.keys()
    # a policy that is its own reference has margins of zero, give or take rounding: there is nothing to count
    at_start = abs(expected.get("rewards/margins", expected.get("eval_rewards/margins", 1))) < 1e-9
    counted = ("rewards/accuracies", "margin/satisfied") if at_start else ()
    for name, value in expected.items():
        if name.removeprefix("eval_") in counted:
            continue
        assert found[name] == pytest.approx(value, rel=1e-7, abs=1e-9), name
