"""recipes/: each run that stands there resolves, offline too, and the papers' settings are in them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from holdfast.experiments.config import load_config
from holdfast.experiments.dry_run import dry_run
from holdfast.experiments.dry_run_words import words
from holdfast.models.tiny import tiny_bpe_tokenizer, tiny_model
from tests.training.conftest import rows

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
BLL = RECIPES / "beyond_log_likelihood"
OTHER_KINDS = ("accelerate", "continuum")  # files of a launcher, and of a sweep
RUNS = sorted(path for path in RECIPES.rglob("*.yaml") if path.parent.name not in OTHER_KINDS)

# The backbones of each domain, by their names on the hub (arXiv 2510.00526, its main tables).
BACKBONES = {
    "maths": {
        "meta-llama/Llama-3.1-8B",
        "deepseek-ai/deepseek-math-7b-base",
        "Qwen/Qwen2.5-Math-1.5B",
        "Qwen/Qwen2.5-Math-7B",
    },
    "medical": {
        "meta-llama/Llama-3.2-3B",
        "meta-llama/Llama-3.1-8B",
        "Qwen/Qwen2.5-1.5B",
        "Qwen/Qwen2.5-Math-7B",
    },
    "figfont": {
        "meta-llama/Llama-3.2-3B",
        "meta-llama/Llama-3.1-8B",
        "Qwen/Qwen2.5-1.5B",
        "Qwen/Qwen2.5-7B",
    },
}
LENGTHS = {"maths": 3072, "medical": 1024, "figfont": 800}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(RECIPES)))
def test_every_recipe_resolves_in_a_dry_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be fetched, only what has to be fetched or made is missing, and it is named."""
    monkeypatch.chdir(tmp_path)
    config = load_config(path)
    found = dry_run(config)
    named = [config.model.name or "", *Path(config.data.source).parts]
    named = [name for name in named if name not in ("", "..")]
    assert all(any(name in refusal for name in named) for refusal in found.refusals)
    assert [plan.stage for plan in found.stages] == [
        stage for stage in ("sft", "align") if getattr(config, stage) is not None
    ]
    assert f"output_dir: {config.output_dir}" in "\n".join(words(found))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands for a model and rows that are there."""
    folder = tmp_path_factory.mktemp("fetched")
    tokenizer = tiny_bpe_tokenizer([" ".join(row["prompt"] for row in rows(20))], 320)
    model = tiny_model(
        "llama", len(tokenizer), max_position_embeddings=4096, eos_token_id=tokenizer.eos_token_id
    )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(600)), encoding="utf-8")
    return folder


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(RECIPES)))
def test_every_recipe_would_start_where_model_and_rows_are_there(
    path: Path, fetched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there = [f"data.source={fetched / 'rows.jsonl'}", "data.split=null"]
    if load_config(path).model.name is not None:
        there += [f"model.name={fetched / 'model'}", "model.chat_template=null", "model.revision=null"]
    found = dry_run(load_config(path, there))
    assert found.refusals == []
    assert all(plan.steps for plan in found.stages)


def test_every_backbone_of_each_domain() -> None:
    found = {
        domain: {load_config(path).model.name for path in (BLL / domain).glob("*.yaml")}
        for domain in BACKBONES
    }
    assert found == BACKBONES
    assert len(set.union(*BACKBONES.values())) == 7
    assert sorted(BLL.rglob("*.yaml")) == sorted(BLL.glob("*/*.yaml"))


@pytest.mark.parametrize(
    "path", sorted(BLL.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_the_papers_settings(path: Path) -> None:
    domain, config = path.parent.name, load_config(path)
    stage: Any = config.sft
    assert config.align is None
    assert config.adapter is None
    assert config.data.max_length == LENGTHS[domain]
    assert stage["learning_rate"] == (2e-5 if config.model.name == "meta-llama/Llama-3.1-8B" else 5e-5)
    assert (stage["lr_scheduler_type"], stage["warmup_steps"], stage["num_train_epochs"]) == (
        "cosine",
        0.1,
        1,
    )
    assert stage["objective"]["name"] == "nll"
    assert stage.get("optim", "adamw_torch_fused").startswith("adamw_torch")
    [gpus] = re.findall(r"--num_processes (\d+)", path.read_text(encoding="utf-8"))
    assert int(gpus) * stage["per_device_train_batch_size"] * stage["gradient_accumulation_steps"] == 256
    assert stage["weight_decay"] == (1e-5 if domain == "figfont" else 0.01)
    assert config.output_dir == f"runs/bll-{domain}-{path.stem}"


@pytest.mark.parametrize("objective", ["p", "{name: threshold, low: 0.2}", "{name: f_alpha, alpha: 0.5}"])
def test_the_papers_other_objectives_are_an_override(objective: str) -> None:
    path = BLL / "maths" / "qwen2.5-math-1.5b.yaml"
    config = load_config(path, [f"sft.objective={objective}"])
    assert config.sft is not None
    assert config.sft["objective"]["name"] == re.sub(r"{name: |,.*", "", objective)


def test_the_commands_name_the_file_they_stand_in() -> None:
    for path in BLL.rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        own = str(path.relative_to(RECIPES.parent))
        assert set(re.findall(r"recipes/beyond_log_likelihood/\S+\.yaml", text)) == {own}
        assert (RECIPES.parent / "recipes" / "accelerate" / "fsdp2.yaml").is_file()
