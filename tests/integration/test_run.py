"""`holdfast run`, as a user runs it: rows in, model and report out; what is wrong is named before it costs anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from holdfast.errors import ConfigError, HoldfastError
from holdfast.experiments.config import load_config, parse_config
from holdfast.experiments.pipeline import run
from holdfast.training import preparation
from tests.training.conftest import rows

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "tiny.yaml"


def small(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """A run of a few steps on rows written here."""
    source = tmp_path / "rows.jsonl"
    if not source.exists():
        source.write_text("".join(json.dumps(row) + "\n" for row in rows(60)), encoding="utf-8")
    stage = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1}
    stage |= {"use_cpu": True, "disable_tqdm": True}
    return {
        "model": {"from_scratch": {"vocab_size": 320, "hidden_size": 32, "layers": 2}},
        "data": {"source": str(source), "eval_fraction": 0.25, "max_length": 64},
        "adapter": None,
        "sft": dict(stage),
        "align": dict(stage),
        "output_dir": str(tmp_path / "run"),
        **changes,
    }


def test_both_stages_from_scratch(tmp_path: Path) -> None:
    said: list[str] = []
    folder = run(parse_config(small(tmp_path)), say=said.append)
    record = json.loads((folder / "run.json").read_text())
    sides = record["data"]["splits"]
    assert sum(side["rows"] for side in sides.values()) == 60
    assert record["stages"]["sft"]["steps"] == record["stages"]["align"]["steps"] == 3
    assert record["config"]["align"]["objective"]["hard_margin"] == 1.5
    assert record["environment"]["versions"].keys() >= {"python", "torch", "transformers", "holdfast"}
    held_out = record["stages"]["align"]["held_out"]
    assert held_out["changes"][0]["name"] == "chosen log-prob"
    assert all(change["pairs"] == sides["held_out"]["rows"] for change in held_out["changes"])
    assert any("likely" in line for line in record["verdicts"])
    assert held_out["changes"][0]["sentence"] in said
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"sft", "align"}
    assert [line["step"] for line in lines if line["stage"] == "align" and "loss" in line] == [1, 2, 3]
    model = AutoModelForCausalLM.from_pretrained(folder / "final")
    tokenizer = AutoTokenizer.from_pretrained(folder / "final")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "the tide?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    assert model.generate(**prompt, max_new_tokens=4).shape[1] > prompt["input_ids"].shape[1]


def test_the_checks_of_holdfast_check_stand_in_the_record(tmp_path: Path) -> None:
    said: list[str] = []
    config = small(tmp_path, sft=None)
    folder = run(parse_config(config), say=said.append)
    start = folder / "final"  # its tokenizer is the one that was trained for the run
    own = json.loads((folder / "run.json").read_text())["data"]["check"]
    result = holdfast(
        "check", config["data"]["source"], "--model", str(start), "--max-length", "64", "--json", cwd=tmp_path
    )
    report = json.loads(result.stdout)
    assert own == {name: report[name] for name in own} | {"seconds": own["seconds"]}
    assert report.keys() - own.keys() == {"problems", "examples"}
    assert any(line.startswith("chat template: 6 checks hold on 60 rows") for line in said)
    assert any("mean length in tokens: prompt" in line for line in said)


def test_a_second_start_tokenizes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(parse_config(small(tmp_path, output_dir=str(tmp_path / "one"))), say=lambda line: None)
    monkeypatch.setattr("holdfast.data.rendering.ChatRenderer.tokenize", lambda *_: pytest.fail("tokenized"))
    run(parse_config(small(tmp_path, output_dir=str(tmp_path / "two"))), say=lambda line: None)


def test_lora_from_a_folder(tmp_path: Path) -> None:
    start = run(parse_config(small(tmp_path, align=None)), say=lambda line: None) / "final"
    changes = {
        "model": str(start),
        "adapter": {"rank": 4, "alpha": 8},
        "sft": None,
        "output_dir": str(tmp_path / "aligned"),
    }
    folder = run(parse_config(small(tmp_path, **changes)), say=lambda line: None)
    record = json.loads((folder / "run.json").read_text())
    assert abs(record["stages"]["align"]["saved"]["drift"]) < 1e-5
    before = AutoModelForCausalLM.from_pretrained(start).state_dict()
    after = AutoModelForCausalLM.from_pretrained(folder / "final").state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_the_same_configuration_gives_the_same_model(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        folder = run(parse_config(small(tmp_path, output_dir=str(tmp_path / name))), say=lambda line: None)
        digests.append(json.loads((folder / "run.json").read_text())["stages"]["align"]["saved"]["digest"])
    assert digests[0] == digests[1]


def test_a_run_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    config = parse_config(small(tmp_path, sft=None))
    run(config, say=lambda line: None)
    before = (tmp_path / "run" / "run.json").read_text()
    with pytest.raises(ConfigError, match="--overwrite"):
        run(config, say=lambda line: None)
    run(config, overwrite=True, say=lambda line: None)
    assert (tmp_path / "run.before-1" / "run.json").read_text() == before


def test_faults_of_the_second_stage_do_not_wait_for_the_first(tmp_path: Path) -> None:
    over_long = small(tmp_path)
    over_long["data"] |= {"max_length": 24, "on_overflow": "error"}
    for config in (
        over_long,
        small(tmp_path, align={"lr_scheduler_type": "cosin"}),
        small(tmp_path, align={"eval_strategy": "sometimes"}),
        small(tmp_path, align={"per_device_train_batch_size": 0}),
    ):
        with pytest.raises(HoldfastError):
            run(parse_config(config), overwrite=True, say=lambda line: None)
        assert not (tmp_path / "run" / "sft").exists()


def test_what_is_cut_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    config = small(tmp_path)
    config["data"] |= {"max_length": 24, "max_prompt_length": 12}
    run(parse_config(config), say=said.append)
    assert any(line.startswith("align:") and "prompt cut in" in line for line in said), said


def test_a_revision_reaches_the_model_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = run(parse_config(small(tmp_path, align=None)), say=lambda line: None) / "final"
    seen: list[Any] = []
    original = preparation.load_model

    def spy(name: str, **options: Any) -> Any:
        seen.append((Path(name).name, options["revision"]))
        return original(name, **(options | {"revision": None}))

    monkeypatch.setattr(preparation, "load_model", spy)
    model = {"name": str(start), "revision": "v1.2"}
    run(
        parse_config(small(tmp_path, model=model, output_dir=str(tmp_path / "second"))), say=lambda line: None
    )
    assert seen == [("final", "v1.2"), ("final", None)]  # the second stage starts from this run's own folder


def test_a_diverged_run_says_so_and_keeps_what_it_had(tmp_path: Path) -> None:
    config = small(tmp_path, sft=None)
    config["align"]["learning_rate"] = 1e30
    with pytest.raises(HoldfastError, match="step 2: .* not finite"):
        run(parse_config(config), say=lambda line: None)
    assert "finished" not in json.loads((tmp_path / "run" / "run.json").read_text())
    assert (tmp_path / "run" / "align" / "checkpoint-1").is_dir()
    assert not (tmp_path / "run" / "final").exists()


def test_lenient_runs_on_the_good_rows_and_keeps_the_bad(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    good = [json.dumps(row) for row in rows(40)]
    bad = ['{"prompt": "x", "chosen": "", "rejected": "y"}', "{not json", '{"prompt": "x", "chosen": "y"}']
    source.write_text("\n".join(good[:20] + bad + good[20:]) + "\n", encoding="utf-8")
    config = small(tmp_path, sft=None)
    config["data"]["validation"] = "lenient"
    folder = run(parse_config(config), say=lambda line: None)
    record = json.loads((folder / "run.json").read_text())
    assert record["data"]["rows"] == 43
    assert sum(record["data"]["refused"].values()) == 3
    quarantined = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert [entry["where"].rpartition(":")[2] for entry in quarantined] == ["21", "22", "23"]


def holdfast(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "holdfast", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_bad_rows_end_with_exit_code_2_before_anything_is_made(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    good = [json.dumps(row) for row in rows(10)]
    source.write_text("\n".join([*good, '{"prompt": "a", "chosen": " ", "rejected": "b"}']), encoding="utf-8")
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(small(tmp_path)), encoding="utf-8")
    result = holdfast("run", str(config), cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert "rows.jsonl:11" in result.stderr
    assert "chosen" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_unknown_key_on_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(small(tmp_path)), encoding="utf-8")
    result = holdfast("run", str(config), "align.objective.hard_margn=1", cwd=tmp_path)
    assert result.returncode == 2
    assert "hard_margin" in result.stderr


def test_the_recipe_on_real_rows(shared_data: Path, tmp_path: Path) -> None:
    """recipes/tiny.yaml, cut to a few steps, through the command line to the report."""
    overrides = [
        f"data.source={shared_data / 'preference' / 'dpo_en_demo.json'}",
        f"output_dir={tmp_path / 'out'}",
        "model.from_scratch.hidden_size=32",
        "model.from_scratch.layers=2",
        "data.max_length=128",
        "data.max_prompt_length=64",
        "sft.max_steps=2",
        "align.max_steps=2",
        "align.per_device_train_batch_size=4",
    ]
    assert load_config(RECIPE, overrides).data.source.endswith("dpo_en_demo.json")
    result = holdfast("run", str(RECIPE), *overrides, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "300 rows" in result.stdout
    assert (tmp_path / "out" / "report.html").is_file()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "final").num_parameters() > 0
