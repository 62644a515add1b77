"""The continuum on a budget of a few steps: rows, cells, and a sweep that is stopped and goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from holdfast.demo import continuum
from holdfast.demo.continuum import grid, run_sweep
from holdfast.demo.continuum_cell import target_probabilities
from holdfast.demo.continuum_config import ContinuumConfig, load_continuum
from holdfast.demo.continuum_tasks import (
    CIPHER,
    KNOWN_KINDS,
    Setting,
    always_wrong,
    demonstrations,
    judged_tasks,
    tasks,
)
from holdfast.demo.scoring import score_completions
from holdfast.demo.world import right_completion, side, tiny_tokenizer
from holdfast.errors import ConfigError
from holdfast.models.tiny import tiny_model
from holdfast.objectives import get_objective
from tests.conftest import REPOSITORY

WEAK = Setting(("ciphering",))
TINY = """
settings:
  strong: {kinds: [reversing], wrong_share: 0.4, wrong_kind: one}
  between: {kinds: [ciphering], taste: 1}
objectives:
  start: null
  nll: nll
  top half: {name: threshold, low_quantile: 0.5}
seeds: [0]
base: {hidden_size: 16, layers: 1, steps: 2, batch_size: 4}
training: {steps: 2, batch_size: 4}
judging: {tasks: 6, samples: 1}
output_dir: OUT
paper: {strong: {top half: "+"}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., ContinuumConfig]:
    """The tiny sweep, its folder under the test's own, with overrides."""
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY.replace("OUT", str(tmp_path / "out")), encoding="utf-8")

    def load(*overrides: str) -> ContinuumConfig:
        return load_continuum(file, overrides)

    return load


# ---- rows


def test_the_cipher_is_one_fixed_permutation() -> None:
    assert sorted(CIPHER) == sorted(CIPHER.values())
    assert sum(key == value for key, value in CIPHER.items()) < 5
    task = next(tasks("sft", "0", WEAK.kinds))
    assert task.prompt.startswith("cipher ")
    assert task.answer == "".join(CIPHER[letter] for letter in task.prompt.removeprefix("cipher "))


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [(True, False), (9, 10), ("abz", "aba"), ([1, 9], [1, 0])],
    ids=str,
)
def test_always_wrong_by_hand(answer: Any, wrong: Any) -> None:
    assert always_wrong(answer) == wrong
    assert type(always_wrong(answer)) is type(answer)


@pytest.mark.parametrize("kind", ["one", "many"])
def test_as_many_demonstrations_are_wrong_as_asked(kind: Any) -> None:
    setting = Setting(KNOWN_KINDS, 0.4, kind)
    shown = demonstrations(setting, 1000, "0")
    meant = list(islice(tasks("sft", "0", setting.kinds), 1000))
    assert [row["prompt"] for row in shown] == [task.prompt for task in meant]
    scores = score_completions(meant, [row["completion"] for row in shown])
    assert all(scores.valid)
    assert 0.35 < 1 - sum(scores.exact) / 1000 < 0.45
    clean = demonstrations(setting, 1000, "0", clean=True)
    assert [row["completion"] for row in clean] == [right_completion(task) for task in meant]


def test_beside_known_families_the_unknown_one_is_shown_rightly() -> None:
    setting = Setting((*KNOWN_KINDS, "ciphering"), 1.0)
    meant = list(islice(tasks("sft", "0", setting.kinds), 200))
    scores = score_completions(meant, [row["completion"] for row in demonstrations(setting, 200, "0")])
    assert {(task.kind == "ciphering", hit) for task, hit in zip(meant, scores.exact, strict=True)} == {
        (True, True),
        (False, False),
    }
    alone = demonstrations(Setting(("ciphering",), 1.0), 20, "0")
    meant = list(islice(tasks("sft", "0", ("ciphering",)), 20))
    assert not any(score_completions(meant, [row["completion"] for row in alone]).exact)


def test_judged_prompts_are_nobodys_demonstrations() -> None:
    judged = judged_tasks(Setting(KNOWN_KINDS), 50, "0")
    assert len({task.prompt for task in judged}) == 50
    assert {side(task.prompt) for task in judged} == {"held_out"}
    assert (
        judged == judged_tasks(Setting(KNOWN_KINDS), 50, "0") != judged_tasks(Setting(KNOWN_KINDS), 50, "1")
    )


def test_target_probabilities_against_plain_logits() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model("qwen3", len(tokenizer), hidden_size=16, layers=1, seed=3)
    rows = demonstrations(WEAK, 20, "0")
    found, informative = target_probabilities(model, tokenizer, rows)
    expected = []
    for row in rows:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], tokenize=False, add_generation_prompt=True
        )
        start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        ids = tokenizer(prompt + row["completion"] + "<|end|>", add_special_tokens=False, return_tensors="pt")
        ids = ids["input_ids"]
        p = model(input_ids=ids).logits[0].double().softmax(-1)
        expected += [p[t - 1, ids[0, t]].item() for t in range(start, ids.shape[1])]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    assert 0.15 < informative.double().mean() < 0.6  # the letters and little else


# ---- the configuration


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objectives.x=slime", "objectives: x: 'slime' works on pairs"),
        ("objectives.x=nl", "did you mean 'nll'"),
        (
            "objectives.x={name: threshold, low_quantile: 2}",
            "low_quantile must be < 1, got 2",
        ),
        ("settings.strong.kinds=[reversin]", "did you mean 'reversing'"),
        ("settings.strong.wrong_shar=0.1", "wrong_shar: unknown key (did you mean 'wrong_share'?)"),
        ("trainin.steps=3", "trainin: unknown key (did you mean 'training'?)"),
        ("base.layer=3", "base.layer: unknown key (did you mean 'layers'?)"),
        ("paper.strng={nll: '0'}", "no setting 'strng' (did you mean 'strong'?)"),
        ("paper.strong={nl: '0'}", "no objective 'nl' (did you mean 'nll'?)"),
        ("training.steps=0", "training.steps"),
        ("seeds=[]", "seeds"),
    ],
)
def test_mistakes_are_named(override: str, message: str, config: Callable[..., ContinuumConfig]) -> None:
    with pytest.raises(ConfigError) as error:
        config(override)
    assert message in str(error.value)


def test_the_recipe_is_a_sweep() -> None:
    recipe = load_continuum(REPOSITORY / "recipes" / "continuum" / "tiny.yaml")
    specs = [spec for spec in recipe.objectives.values() if spec is not None]
    names = {spec if isinstance(spec, str) else spec["name"] for spec in specs}
    assert {"nll", "f_alpha", "threshold", "focal", "huber_p", "adaptive"} <= names
    assert len(recipe.seeds) == 3


# ---- the sweep


def test_a_sweep_that_stops_goes_on_where_it_was(
    config: Callable[..., ContinuumConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished cells are neither lost nor run again, and the end is that of a sweep that was never stopped."""
    run_cell, ran = continuum.run_cell, []

    def stops_at_the_third(*given: Any) -> Any:
        ran.append(given)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return run_cell(*given)

    monkeypatch.setattr(continuum, "run_cell", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(config(), say=lambda line: None)
    assert len(list((tmp_path / "out" / "cells").glob("*.json"))) == 2
    said: list[str] = []
    folder = run_sweep(config(), say=said.append)
    assert said[0].startswith("6 cells, 2 of them done already")
    assert len(ran) == 3 + 4
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [(line["setting"], line["objective"], line["seed"]) for line in lines] == [
        (setting, objective, 0)
        for setting in ("strong", "between")
        for objective in ("start", "nll", "top half")
    ]
    again = run_sweep(config(f"output_dir={tmp_path / 'other'}"), say=lambda line: None)
    others = [json.loads(line) for line in (again / "results.jsonl").read_text().splitlines()]
    untimed = {"seconds": 0, "cpu_seconds": 0}
    assert [line | untimed for line in lines] == [line | untimed for line in others]
    assert (folder / "table.md").read_bytes() == (again / "table.md").read_bytes()
    assert (folder / "figure.svg").read_bytes() == (again / "figure.svg").read_bytes()
    top = next(line for line in lines if line["objective"] == "top half")
    assert 0 < top["spec"]["low"] < 0.1  # a quantile of the start, which gives no token more
    start = next(line for line in lines if line["objective"] == "start")
    assert start["start"]["mean_probability"] < 0.1
    assert "spec" not in start
    count = len(ran)
    run_sweep(config(), say=lambda line: None)
    assert len(ran) == count


def test_what_a_cell_depends_on_is_in_its_name(
    config: Callable[..., ContinuumConfig], tmp_path: Path
) -> None:
    def names(*overrides: str) -> set[str]:
        return {cell.path.name for cell in grid(config(*overrides), tmp_path)}

    assert names() == names()
    assert names("seeds=[0, 1]") > names()
    for override in ("training.steps=3", "judging.samples=2", "base.layers=2"):
        assert not names(override) & names(), override
    assert len(names("objectives.nll=focal") & names()) == 4
    told = names("objectives.nll={name: focal, gamma: 1.0}")
    assert len(names("objectives.nll=focal") - told) == 2  # another version may have other defaults
    default = get_objective("focal").gamma  # type: ignore[attr-defined]
    assert names("objectives.nll=focal") == names(f"objectives.nll={{name: focal, gamma: {default}}}")
    assert len(names("settings.strong.wrong_share=0.5") & names()) == 3
    assert len(names("settings.between.taste=2") & names()) == 3
