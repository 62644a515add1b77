"""A checkpoint does not know how many processes wrote it: one, two or two that share the model go on from it alike."""

from __future__ import annotations

import os
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.faults.pair import run_pair
from tests.faults.training_cases import go_on, train_and_save

HERE = "tests.faults.training_cases"
NAMES = ["sft-kept", "slime-lora"]
STEPS = {"sft-kept": 4, "slime-lora": 6}
# by whom the checkpoint was written, and who goes on from it: one process, or two
COURSES = [
    ("one", "ddp"),
    ("one", "fsdp2"),
    ("ddp", "ddp"),
    ("ddp", "fsdp2"),
    ("fsdp2", "ddp"),
    ("fsdp2", "one"),
]
COURSES += [("ddp", "one")]
DROPOUT = "dropout"
Results = dict[tuple[str, str, str | None], list[Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resumed")


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    """By case, who ran it, and whose checkpoint it went on from: what each process says."""
    found: Results = {}
    (folder / "one").mkdir()

    def alone(action: Any, *arguments: str) -> list[Any]:
        before = Path.cwd()
        os.chdir(folder / "one")
        try:
            return [action(*arguments)]
        finally:
            os.chdir(before)

    for name in NAMES:
        found[name, "one", None] = alone(train_and_save, name, "one")
    cases = {(name, how, None): f"train_and_save {name} {how}" for name in NAMES for how in ("ddp", "fsdp2")}
    cases |= {
        (name, how, whose): f"go_on {name} {how} {whole(folder, name, whose)}"
        for name in NAMES
        for whose, how in COURSES
        if how != "one"
    }
    cases[DROPOUT, "ddp", None] = f"train_and_save {DROPOUT} ddp"
    cases[DROPOUT, "ddp", "ddp"] = f"go_on {DROPOUT} ddp {whole(folder, DROPOUT, 'ddp')}"
    cases |= {("sft-full", how, "best"): f"keep_the_best sft-full {how}" for how in ("ddp", "fsdp2")}
    pair = run_pair(folder / "two", [f"{HERE}:{case}" for case in cases.values()])
    for key, case in cases.items():
        found[key] = [own[f"{HERE}:{case}"] for own in pair]
    for name in NAMES:
        for whose in ("ddp", "fsdp2"):
            found[name, "one", whose] = alone(go_on, name, "one", str(whole(folder, name, whose)))
    return found


def whole(folder: Path, name: str, how: str) -> Path:
    """The folder of an uninterrupted run."""
    return folder / ("one" if how == "one" else "two") / f"whole-{name}-{how}"


def rows_of(results: list[Any]) -> list[list[int]]:
    """The rows of each micro-batch, of all processes side by side."""
    if len(results) == 1:
        return results[0]["rows"]
    return [[a[0], *a[1:], *b[1:]] for a, b in zip_longest(*(own["rows"] for own in results))]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("whose", "how"), COURSES)
def test_the_run_it_would_have_been(whose: str, how: str, name: str, folder: Path, results: Results) -> None:
    uninterrupted = results[name, "one", None]
    resumed = results[name, how, whose]
    assert rows_of(resumed) == [row for row in rows_of(uninterrupted) if row[0] >= 2]
    expected = load_file(whole(folder, name, "one") / "weights.safetensors")
    here = folder / ("one" if how == "one" else "two")
    found = load_file(here / f"from-{whole(folder, name, whose).name}-by-{how}" / "weights.safetensors")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6, msg=key)
    for own in resumed:
        losses = [line["loss"] for line in own["log"] if "loss" in line]
        wanted = [line["loss"] for line in uninterrupted[0]["log"] if "loss" in line]
        assert losses == pytest.approx(wanted, rel=1e-6)
        assert len(losses) == STEPS[name]
        assert own["log"][-1]["train_loss"] == pytest.approx(
            uninterrupted[0]["log"][-1]["train_loss"], rel=1e-6
        )


def test_random_numbers_go_on_in_each_process(folder: Path, results: Results) -> None:
    """The same number of processes, and dropout: bit for bit the run that was not interrupted."""
    whole_run, resumed = (
        load_file(folder / "two" / name / "weights.safetensors")
        for name in (f"whole-{DROPOUT}-ddp", f"from-whole-{DROPOUT}-ddp-by-ddp")
    )
    assert all(torch.equal(whole_run[key], value) for key, value in resumed.items())
    for own, again in zip(results[DROPOUT, "ddp", None], results[DROPOUT, "ddp", "ddp"], strict=True):
        assert again["rows"] == [row for row in own["rows"] if row[0] >= 2]
        losses, wanted = ([line["loss"] for line in one["log"] if "loss" in line] for one in (again, own))
        assert losses == wanted


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_the_best_weights_at_the_end(how: str, results: Results) -> None:
    for own in results["sft-full", how, "best"]:
        assert own["after"] == pytest.approx(max(own["losses"]), rel=1e-9)
        assert own["losses"][-1] < 0.9 * max(own["losses"]), (
            "the last step is the best: the test could not fail"
        )


def test_the_steps_change_the_weights(folder: Path) -> None:
    """What is compared is not what the runs begin with."""
    for name in NAMES:
        folders = sorted((whole(folder, name, "one") / "out").glob("checkpoint-*"))
        assert [path.name for path in folders] == [f"checkpoint-{n}" for n in range(1, STEPS[name] + 1)]
        first, last = (next(path.glob("*model.safetensors")) for path in (folders[1], folders[-1]))
        before, after = load_file(first), load_file(last)
        assert max((after[key] - value).abs().max().item() for key, value in before.items()) > 1e-4
