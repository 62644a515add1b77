"""The YAML of a run: what it accepts, what it refuses, and how it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from holdfast.errors import ConfigError
from holdfast.experiments.config import apply_override, load_config, parse_config

GOOD: dict[str, Any] = {
    "model": "some/model",
    "data": {"source": "rows.jsonl"},
    "align": {"objective": "slime"},
    "output_dir": "runs/x",
}
RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda p: str(p.relative_to(RECIPES)))
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
        ({"align": {"max_length": 12}}, "as `data.max_length`"),
        ({"align": {"hub_token": "hf_x"}}, "secret"),
        ({"align": None}, "nothing to do"),
        ({"data": {"source": "x", "sft_fraction": 0.9, "eval_fraction": 0.5}}, "exceed 1"),
        ({"model": {"name": "x", "from_scratch": {}}}, "either a name or"),
        ({"data": {}}, "data.source: missing"),
    ],
)
def test_faults_name_the_key_and_the_nearest_one(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(GOOD | change)


def test_numbers_that_yaml_reads_as_text() -> None:
    raw = yaml.safe_load("learning_rate: 1e-4\nnum_train_epochs: 2")
    assert raw["learning_rate"] == "1e-4"  # the trap
    config = parse_config(GOOD | {"align": raw})
    assert config.align is not None
    assert config.align["learning_rate"] == 1e-4
    assert config.align["num_train_epochs"] == 2


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(GOOD), encoding="utf-8")
    config = load_config(path, ["align.objective.hard_margin=1.2", "data.limit=7", "seed=3", "adapter=null"])
    assert config.align is not None
    assert config.align["objective"]["hard_margin"] == 1.2
    assert (config.data.limit, config.seed, config.adapter) == (7, 3, None)
    for bad in ("seed", "=3", "data..limit=1"):
        with pytest.raises(ConfigError, match="not an override"):
            load_config(path, [bad])
    with pytest.raises(ConfigError, match="is a value"):
        apply_override({"seed": 3}, "seed.x=1")


def test_files_that_are_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no config file"):
        load_config(tmp_path / "missing.yaml")
    for text, message in (("a: [", "not valid YAML"), ("- 1", "expected keys")):
        (tmp_path / "bad.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            load_config(tmp_path / "bad.yaml")
