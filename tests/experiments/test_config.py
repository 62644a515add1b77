"""The YAML of a run: what it accepts, what it refuses, and how it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from holdfast.errors import ConfigError
from holdfast.experiments.config import load_config, parse_config, section_keys

GOOD: dict[str, Any] = {
    "model": "some/model",
    "data": {"source": "rows.jsonl"},
    "align": {"objective": "slime"},
    "output_dir": "runs/x",
}
RECIPES = Path(__file__).resolve().parents[2] / "recipes"


# Those of a run: `continuum` and `accelerate` hold files of another kind.
RUNS = sorted([*RECIPES.glob("*.yaml"), *(RECIPES / "slime").glob("*.yaml")])


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(RECIPES)))
def test_every_recipe_resolves(path: Path) -> None:
    load_config(path)


def test_slime_recipes_hold_the_papers_settings() -> None:
    rates = {"llama3.2-3b": 2e-4, "gemma3-4b": 2e-4, "qwen3-4b": 2.5e-6}
    for name, rate in rates.items():
        config = load_config(RECIPES / "slime" / f"{name}.yaml")
        assert config.sft is not None
        assert config.align is not None
        assert config.adapter is not None
        assert config.adapter.model_dump() == {"rank": 64, "alpha": 128, "dropout": 0.0, "train_head": True}
        assert (config.sft["learning_rate"], config.sft["num_train_epochs"]) == (rate, 3)
        assert (config.align["learning_rate"], config.align["num_train_epochs"]) == (5e-7, 1)
        for stage in (config.sft, config.align):
            assert (stage["lr_scheduler_type"], stage["warmup_steps"], stage["max_grad_norm"]) == (
                "linear",
                0,
                0.0,
            )
            assert (stage["per_device_train_batch_size"], stage["gradient_accumulation_steps"]) == (8, 2)
        objective = config.align["objective"]
        assert objective["anchor_weight"] == objective["stabilizer_weight"] == 0.1
        assert (objective["hard_margin"], objective["soft_margin"], objective["exponent"]) == (1.5, 1.0, 2.5)
        assert (config.data.sft_fraction, config.seed) == (0.33, 0)


def test_a_bare_name_is_a_model_and_an_objective() -> None:
    config = parse_config(GOOD)
    assert config.model.name == "some/model"
    assert config.align is not None
    assert config.align["objective"]["name"] == "slime"
    assert config.align["objective"]["hard_margin"] == 1.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"allign": {}}, "allign: unknown key .*'align'"),
        ({"data": {"source": "x", "sft_fracton": 0.5}}, "data.sft_fracton: unknown key .*'sft_fraction'"),
        ({"align": {"learning_rat": 1e-6}}, "align.learning_rat: unknown key .*'learning_rate'"),
        ({"align": {"objective": "slim"}}, "slime"),
        ({"align": {"objective": {"name": "slime", "hard_margn": 1}}}, "hard_margin"),
        ({"align": {"objective": "nll"}}, "pair objective"),
        ({"align": {"learning_rate": "fast"}}, "align.learning_rate: .*number.*got 'fast'"),
        ({"align": {"bf16": "yes please"}}, "align.bf16"),
        ({"align": {"gradient_accumulation_steps": 1.5}}, "align.gradient_accumulation_steps: .*integer"),
        ({"align": {"learning_rate": True}}, "expected a number, got true"),
        ({"align": None}, "nothing to do"),
        ({"align": "slime"}, "align: expected keys with values, got 'slime'"),
        ({"sft": True}, "sft: expected keys with values, got true"),
        ({"model": {"name": "x", "from_scratch": {}}}, "model: give either a name or"),
        ({"model": {"from_scratch": {"family": "qwn3"}}}, "model.from_scratch: .*did you mean 'qwen3'"),
        ({"model": {"from_scratch": {"hidden_size": 40}}}, "model.from_scratch: .*multiple of 16"),
        (
            {"model": {"name": "x", "revision": 1.0}},
            "model.revision: expected text, got 1.0: put text in quotes",
        ),
        ({"model": {"name": "x", "dtype": "bf16"}}, "model.dtype: no such value as 'bf16' .*'bfloat16'"),
        ({"model": None}, "model: expected keys with values, got null"),
        ({"adapter": {"rank": True}}, "adapter.rank: expected a number, got true"),
        ({"output_dir": ""}, "output_dir: .*at least 1 character"),
        ({"output_dir": False}, "output_dir: expected text, got false .YAML reads yes, no"),
        ({"seed": -1}, "seed: must be greater than or equal to 0, got -1"),
        ({"seed": 2**32}, "seed: must be less than 4294967296"),
        ({7: 1}, "7: "),
    ],
)
def test_faults_name_the_key_and_the_nearest_one(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(GOOD | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "data.source: missing"),
        ({"source": True}, "data.source: expected text, got true .YAML reads yes, no"),
        ({"source": None}, "data.source: expected text, got null$"),
        ({"source": ""}, "data.source: "),
        ({"source": "x", "format": "nonsense"}, "data.format: no row layout is called 'nonsense'"),
        ({"source": "x", "format": "alpaca"}, "data.format: .*a preference needs two"),
        ({"source": "x", "max_length": 1}, "data.max_length: must be greater than or equal to 2, got 1"),
        (
            {"source": "x", "max_length": 64, "max_prompt_length": 64},
            "data.max_prompt_length: 64 leaves no room",
        ),
        ({"source": "x", "limit": True}, "data.limit: expected a number, got true"),
        ({"source": "x", "eval_fraction": 1}, "data.eval_fraction: must be less than 1"),
        ({"source": "x", "eval_fraction": float("nan")}, "data.eval_fraction: must be a finite number"),
        (
            {"source": "x", "on_overflow": False},
            "data.on_overflow: must be 'cut', 'drop' or 'error', got false$",
        ),
    ],
)
def test_faults_of_the_data_section(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(GOOD | {"data": change})


def test_every_stage_gets_rows() -> None:
    def parse(share: float, held_out: float, **stages: Any) -> None:
        data = {"source": "x", "sft_fraction": share, "eval_fraction": held_out}
        parse_config(GOOD | {"data": data} | stages)

    parse(0.9, 0.05, sft={})
    for share, held_out in ((0.5, 0.5), (1, 0), (0.33, 0.999)):
        with pytest.raises(ConfigError, match="data.sft_fraction .* and data.eval_fraction .* below 1"):
            parse(share, held_out, sft={})
    with pytest.raises(ConfigError, match="data.sft_fraction: 0 leaves the sft stage no rows"):
        parse(0, 0.1, sft={})
    # one stage trains on all that is not held out, whatever sft_fraction says
    parse(0, 0.999)
    parse(0, 0.5, sft={}, align=None)
    parse(1, 0.5)


def test_evaluation_needs_held_out_rows() -> None:
    for settings in ({"eval_strategy": "steps"}, {"eval_on_start": True}):
        parse_config(GOOD | {"align": settings})
        with pytest.raises(ConfigError, match=f"align.{next(iter(settings))}: data.eval_fraction is 0"):
            parse_config(GOOD | {"data": {"source": "x", "eval_fraction": 0}, "align": settings})
    parse_config(GOOD | {"data": {"source": "x", "eval_fraction": 0}, "align": {"eval_strategy": "no"}})


def test_numbers_that_yaml_reads_as_text() -> None:
    raw = yaml.safe_load("learning_rate: 1e-4\nnum_train_epochs: 2")
    assert raw["learning_rate"] == "1e-4"  # the trap
    config = parse_config(GOOD | {"align": raw})
    assert config.align is not None
    assert config.align["learning_rate"] == 1e-4
    assert config.align["num_train_epochs"] == 2


def test_overrides_and_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(GOOD), encoding="utf-8")
    config = load_config(path, ["align.objective.hard_margin=1.2", "data.limit=7", "seed=3", "adapter=null"])
    assert config.align is not None
    assert config.align["objective"]["hard_margin"] == 1.2
    assert (config.data.limit, config.seed, config.adapter) == (7, 3, None)
    assert load_config(path, ["align.objective.exponent=2e0"]).align != config.align
    for bad in ("align.learning_rate=-1", "data.limt=1", "seed=x", "align.objective.hard_margin=x"):
        with pytest.raises(
            ConfigError, match=f"^{path}: {bad.partition('=')[0].removesuffix('.hard_margin')}: "
        ):
            load_config(path, [bad])


def test_section_keys() -> None:
    assert {"model.name", "data.limit", "adapter.rank"} <= set(section_keys())
