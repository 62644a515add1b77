"""A model that brings code: refused, unless it is asked for at one revision that cannot change; then it runs."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, dynamic_module_utils

from holdfast.models.loading import load_model
from holdfast.models.remote_code import code_digest
from tests.faults.commands import Ended, copied, holdfast, record_of, set_keys, stage

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODELING = """
from transformers import Qwen3Config, Qwen3ForCausalLM

open({mark!r}, "a").close()


class OwnConfig(Qwen3Config):
    model_type = "own"


class OwnForCausalLM(Qwen3ForCausalLM):
    config_class = OwnConfig
"""
AUTO_MAP = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}


@pytest.fixture(autouse=True)
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Code that is run is copied first: here to where it is thrown away."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("transformers_modules"):
            del sys.modules[name]


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What the model's code makes when it runs."""
    return tmp_path / "mark"


@pytest.fixture
def model(start: Path, tmp_path: Path, mark: Path) -> Path:
    """A model whose classes come with it, and no other way."""
    folder = copied(start, tmp_path / "model")
    (folder / "modeling_own.py").write_text(MODELING.format(mark=str(mark)))
    set_keys(folder / "config.json", model_type="own", architectures=["OwnForCausalLM"], auto_map=AUTO_MAP)
    return folder


@pytest.fixture
def on_the_hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same model as the hub's cache has it, and its name."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    kept = tmp_path / "hub" / "models--me--own"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(COMMIT)
    shutil.copytree(model, kept / "snapshots" / COMMIT)
    return "me/own"


def run(name: str | Path, rows: Path, out: Path, *stages: str, **settings: Any) -> Ended:
    """`holdfast run`."""
    quick = {"max_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True}
    config = {
        "model": {"name": str(name), **settings},
        "data": {"source": str(rows), "max_length": 64, "eval_fraction": 0, "sft_fraction": 0.5},
        "adapter": None,
        "output_dir": str(out),
        **dict.fromkeys(stages or ["align"], quick),
    }
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(config))
    return holdfast("run", file)


# ---- refused


def test_a_model_that_needs_code_is_refused(model: Path, rows: Path, tmp_path: Path, mark: Path) -> None:
    for ended in (
        run(model, rows, tmp_path / "run"),
        stage("sft", model, rows, tmp_path / "run"),
        holdfast("check", rows, "--model", model),
    ):
        assert ended.code == 2
        assert (
            "needs code of its own to be run (modeling_own.OwnConfig, modeling_own.OwnForCausalLM)"
            in ended.error
        )
        assert f"`model.revision` to {code_digest(model)}" in ended.error
    assert not mark.exists()
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_that_needs_code_is_refused(start: Path, rows: Path, tmp_path: Path, mark: Path) -> None:
    """transformers would load another class in its place, and say nothing."""
    folder = copied(start, tmp_path / "model")
    (folder / "tokens.py").write_text(f"open({str(mark)!r}, 'w')\nclass Tokens: pass\n")
    for auto_map in ({"AutoTokenizer": ["tokens.Tokens", None]}, ["tokens.Tokens", None]):
        set_keys(folder / "tokenizer_config.json", auto_map=auto_map, tokenizer_class="Tokens")
        ended = run(folder, rows, tmp_path / "run")
        assert ended.code == 2
        assert "needs code of its own to be run (tokens.Tokens)" in ended.error
    assert not mark.exists()


@pytest.mark.parametrize("key", ["AutoConfig", "AutoModelForCausalLM"])
def test_code_of_another_repository_is_refused_even_if_trusted(
    model: Path, rows: Path, tmp_path: Path, key: str
) -> None:
    """No revision of the model says which code that is."""
    set_keys(model / "config.json", auto_map=AUTO_MAP | {key: f"else/where--{AUTO_MAP[key]}"})
    for settings in ({}, {"trust_remote_code": True, "revision": code_digest(model)}):
        ended = run(model, rows, tmp_path / "run", **settings)
        assert ended.code == 2
        assert f"code of another repository (else/where--{AUTO_MAP[key]})" in ended.error


@pytest.mark.parametrize("revision", [None, "main", COMMIT, "sha256:" + "0" * 64])
def test_a_folder_is_pinned_by_the_digest_of_its_code(
    model: Path, rows: Path, tmp_path: Path, mark: Path, revision: str | None
) -> None:
    ended = run(model, rows, tmp_path / "run", trust_remote_code=True, revision=revision)
    assert ended.code == 2
    assert f"set revision to {code_digest(model)}" in ended.error
    assert not mark.exists()


def test_code_that_has_changed_is_refused(model: Path, rows: Path, tmp_path: Path, mark: Path) -> None:
    read = code_digest(model)
    (model / "more").mkdir()
    (model / "more" / "helper.py").write_text("1")
    assert code_digest(model) != read
    ended = run(model, rows, tmp_path / "run", trust_remote_code=True, revision=read)
    assert ended.code == 2
    assert not mark.exists()
    (model / "more" / "helper.py").rename(model / "helper.py")
    assert code_digest(model) != read


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:8], COMMIT.upper(), f"{COMMIT}\n", f"v{COMMIT}"])
def test_a_name_on_the_hub_is_pinned_by_a_whole_commit(
    on_the_hub: str, rows: Path, tmp_path: Path, mark: Path, revision: str | None
) -> None:
    ended = run(on_the_hub, rows, tmp_path / "run", trust_remote_code=True, revision=revision)
    assert ended.code == 2
    assert "revision must be one commit (40 hexadecimal digits)" in ended.error
    plain = run(on_the_hub, rows, tmp_path / "run", revision=None if revision != "main" else "main")
    assert plain.code == 2
    assert "needs code of its own to be run" in plain.error
    assert not mark.exists()


def test_a_stage_cannot_ask_for_it_by_itself(model: Path, rows: Path, tmp_path: Path, mark: Path) -> None:
    ended = stage("align", model, rows, tmp_path / "run", "align.trust_remote_code=true")
    assert ended.code == 2
    assert "is set for the whole run, as `model.trust_remote_code`" in ended.error
    assert not mark.exists()


# ---- run, once it is pinned


def test_pinned_code_of_a_folder_runs_through_both_stages(
    model: Path, rows: Path, tmp_path: Path, mark: Path
) -> None:
    """The second stage starts from this run's own copy of the model and its code."""
    revision = code_digest(model)
    ended = run(model, rows, tmp_path / "run", "sft", "align", trust_remote_code=True, revision=revision)
    assert ended.code == 0, ended.error
    assert mark.exists()
    record = record_of(tmp_path / "run")
    assert record["config"]["model"]["revision"] == revision
    assert list(record["stages"]) == ["sft", "align"]
    final = tmp_path / "run" / "final"
    assert json.loads((final / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert (final / "modeling_own.py").read_text() == (model / "modeling_own.py").read_text()
    # what was saved needs the same leave as what it came from
    again = run(final, rows, tmp_path / "again")
    assert again.code == 2
    assert "needs code of its own" in again.error


def test_pinned_code_of_the_hub_runs(on_the_hub: str, rows: Path, tmp_path: Path, mark: Path) -> None:
    ended = run(on_the_hub, rows, tmp_path / "run", trust_remote_code=True, revision=COMMIT)
    assert ended.code == 0, ended.error
    assert mark.exists()


# ---- code that need not run


def test_code_that_transformers_does_not_need_is_not_run_and_said(
    start: Path, rows: Path, tmp_path: Path, mark: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As models have it that came before their family's classes."""
    folder = copied(start, tmp_path / "model")
    (folder / "modeling_own.py").write_text(MODELING.format(mark=str(mark)))
    set_keys(folder / "config.json", auto_map=AUTO_MAP)
    with caplog.at_level(logging.WARNING):
        ended = run(folder, rows, tmp_path / "run")
    assert ended.code == 0, ended.error
    assert not mark.exists()
    assert any("brings code of its own" in record.message for record in caplog.records)


def test_a_class_that_is_not_the_familys_needs_its_code(
    start: Path, rows: Path, tmp_path: Path, mark: Path
) -> None:
    """The family is known, but the model is another one: transformers would load the family's, and say nothing."""
    folder = copied(start, tmp_path / "model")
    (folder / "modeling_own.py").write_text(MODELING.format(mark=str(mark)))
    set_keys(folder / "config.json", auto_map=AUTO_MAP, architectures=["OwnForCausalLM"])
    ended = run(folder, rows, tmp_path / "run")
    assert ended.code == 2
    assert "needs code of its own to be run" in ended.error


def test_files_of_code_that_nothing_names_are_left_alone(
    start: Path, rows: Path, tmp_path: Path, mark: Path
) -> None:
    folder = copied(start, tmp_path / "model")
    for name in ("modeling_qwen3.py", "__init__.py", "custom_generate/generate.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"open({str(mark)!r}, 'w')")
    ended = run(folder, rows, tmp_path / "run")
    assert ended.code == 0, ended.error
    assert not mark.exists()


# ---- attention code of the hub


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_model_does_not_choose_code_on_the_hub(start: Path, rows: Path, tmp_path: Path, key: str) -> None:
    folder = copied(start, tmp_path / "model")
    set_keys(folder / "config.json", **{key: "someone/attention"})
    ended = run(folder, rows, tmp_path / "run")
    assert ended.code == 2
    assert "names attention code on the hub (someone/attention)" in ended.error


def test_attention_code_of_the_hub_must_be_pinned(
    start: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = run(start, rows, tmp_path / "run", attention="someone/attention@main")
    assert ended.code == 2
    assert "write someone/attention@COMMIT" in ended.error
    seen: list[Any] = []

    def spy(name: str, **options: Any) -> Any:
        seen.append(options["attn_implementation"])
        raise OSError("stopped")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spy)
    with pytest.raises(Exception, match="stopped"):
        load_model(str(start), attention=f"someone/attention@{COMMIT}")
    assert seen == [f"someone/attention@{COMMIT}"]
