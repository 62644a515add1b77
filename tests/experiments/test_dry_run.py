"""`holdfast run --dry-run`: what it counts is what a run does, what it refuses a run refuses, and nothing is left."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from holdfast.cli.main import app
from holdfast.errors import ConfigError, FolderInUse, HoldfastError
from holdfast.experiments.config import parse_config
from holdfast.experiments.devices import DEVICES
from holdfast.experiments.dry_run import dry_run
from holdfast.experiments.dry_run_findings import UTILISATION, DryRun
from holdfast.experiments.dry_run_words import amount, duration, words
from holdfast.experiments.pipeline import run
from holdfast.models.tiny import tiny_bpe_tokenizer, tiny_model
from holdfast.training.run_lock import LOCK, Holder, RunLock
from tests.training.conftest import WORDS, rows


def configured(folder: Path, **changes: Any) -> dict[str, Any]:
    """A small run from scratch on rows written here."""
    source = folder / "rows.jsonl"
    if not source.exists():
        source.write_text("".join(json.dumps(row) + "\n" for row in rows(60)), encoding="utf-8")
    stage = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
    stage |= {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "learning_rate": 1e-3}
    return {
        "model": {"from_scratch": {"vocab_size": 320, "hidden_size": 32, "layers": 2}},
        "data": {"source": str(source), "eval_fraction": 0.25, "max_length": 64},
        "adapter": None,
        "sft": dict(stage),
        "align": dict(stage),
        "output_dir": str(folder / "run"),
        **changes,
    }


def found_in(folder: Path, *, options: dict[str, Any] | None = None, **changes: Any) -> DryRun:
    return dry_run(parse_config(configured(folder, **changes)), **(options or {}))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without weights that could be loaded: a dry run reads its configuration alone."""
    folder = tmp_path_factory.mktemp("start")
    tokenizer = tiny_bpe_tokenizer([" ".join(WORDS)] * 3, 320)
    tiny_model("llama", len(tokenizer), hidden_size=32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_what_is_counted_is_what_a_run_does(tmp_path: Path) -> None:
    found = found_in(tmp_path)
    assert found.would_start
    assert found.gaps == [
        f"{stage}.use_cpu: the stage runs on the CPU; its figures are for the GPU all the same"
        for stage in ("sft", "align")
    ]
    folder = run(parse_config(configured(tmp_path)), say=lambda line: None)
    record = json.loads((folder / "run.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for plan in found.stages:
        assert plan.steps == record["stages"][plan.stage]["steps"]
        assert plan.rows == record["stages"][plan.stage]["rows"]["train"]["examples"]
        assert plan.work is not None
        tokens = max(
            line["num_tokens"] for line in lines if line["stage"] == plan.stage and "num_tokens" in line
        )
        assert plan.args.num_train_epochs * plan.work.plain.sum() == tokens


def test_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    source = configured(tmp_path)["data"]["source"]
    with Path(source).open("a", encoding="utf-8") as file:
        file.write('{"prompt": "no answers"}\n')
    data = configured(tmp_path)["data"] | {"validation": "lenient"}
    before = sorted(tmp_path.rglob("*"))
    assert found_in(tmp_path, data=data).would_start
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_would_be_refused_is_refused_here(tmp_path: Path) -> None:
    """The same words from both, and a run's first word is among those of the dry run."""
    settings = configured(tmp_path)
    bad = tmp_path / "bad.jsonl"
    bad.write_text(
        Path(settings["data"]["source"]).read_text() + '{"prompt": "no answers"}\n', encoding="utf-8"
    )
    cases: list[dict[str, Any]] = [
        {"data": settings["data"] | {"source": str(bad)}},
        {"data": settings["data"] | {"source": str(tmp_path / "nowhere.jsonl")}},
        {"model": str(tmp_path / "no-model")},
        {
            "data": settings["data"] | {"eval_fraction": 0.001},
            "sft": settings["sft"] | {"eval_strategy": "epoch"},
        },
    ]
    for changes in cases:
        config = parse_config(settings | changes)
        with pytest.raises(HoldfastError) as refused:
            run(config, say=lambda line: None)
        found = dry_run(config)
        assert not found.would_start
        assert str(refused.value) in found.refusals
        assert words(found)[-1].startswith("  ")
        assert "a real run would not start:" in words(found)


def test_what_is_missing_does_not_hide_the_rest(tmp_path: Path) -> None:
    """Offline, a name on the hub has no tokenizer and no shape; the rows are still checked and shared out."""
    found = found_in(tmp_path, model="some/model")
    assert not found.would_start
    assert all("some/model" in refusal for refusal in found.refusals)
    assert [plan.rows is not None and plan.steps is not None for plan in found.stages] == [True, True]
    assert [plan.seconds for plan in found.stages] == [None, None]
    said = "\n".join(words(found))
    assert "tokens and time: not counted without the tokenizer" in said
    assert "memory and time: not estimated without the model's configuration (fetch it" in said
    assert "name: some/model" in said
    # rows that are missing leave the model's memory, at the longest rows there can be
    data = configured(tmp_path)["data"] | {"source": str(tmp_path / "nowhere.jsonl")}
    found = found_in(tmp_path, data=data)
    assert [plan.memory is not None and plan.assumed_largest for plan in found.stages] == [True, True]
    assert found.stages[0].largest == (4 * 64, 4 * 64)
    assert found.stages[1].largest == (2 * 4 * 64, 2 * 4 * 64)
    said = "\n".join(words(found))
    assert "as many as max_length allows" in said
    assert "not estimated without rows (fetch or make them" in said


def test_a_folder_that_holds_a_run_is_refused_and_not_touched(tmp_path: Path) -> None:
    (tmp_path / "run" / "final").mkdir(parents=True)
    found = found_in(tmp_path)
    assert any("holds final, but no run.json" in refusal for refusal in found.refusals)
    assert found_in(tmp_path, options={"overwrite": True}).would_start
    assert list((tmp_path / "run").iterdir()) == [tmp_path / "run" / "final"]
    (tmp_path / "file").touch()
    found = found_in(tmp_path, output_dir=str(tmp_path / "file" / "run"))
    assert any("no folder that can be written to" in refusal for refusal in found.refusals)


def test_a_folder_that_another_run_is_at_work_in(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with RunLock(folder):
        refusal = RunLock(folder)
        with pytest.raises(FolderInUse) as refused:
            refusal.acquire(wait=0)
        assert found_in(tmp_path, options={"overwrite": True}).refusals == [str(refused.value)]
    holder = replace(Holder.here(), pid=2**40)  # no process has such a number
    (folder / LOCK).write_text(holder.text(), encoding="utf-8")
    assert found_in(tmp_path).would_start


def test_what_the_trainer_would_refuse(tmp_path: Path, start: Path) -> None:
    changes = {"model": str(start), "data": configured(tmp_path)["data"] | {"max_length": 4096}}
    found = found_in(tmp_path, **changes)
    assert found.refusals == ["max_length is 4096, but the model has 2048 positions"]


def test_adapter_precision_and_gpus(tmp_path: Path, start: Path) -> None:
    whole = found_in(tmp_path, model=str(start))
    adapted = found_in(tmp_path, model=str(start), adapter={"rank": 4, "train_head": False})
    assert whole.parameters is not None
    assert adapted.parameters is not None
    assert whole.parameters[0] == whole.parameters[1] > 5 * adapted.parameters[1]
    memory, lean = whole.stages[0].memory, adapted.stages[0].memory
    assert memory is not None
    assert lean is not None
    assert memory.gradients == 4 * whole.parameters[1]
    assert lean.optimizer == 8 * adapted.parameters[1]
    many = found_in(tmp_path, model=str(start), options={"gpus": 4, "gpu": "a100"})
    for one, four in zip(whole.stages, many.stages, strict=True):
        assert four.rows_a_step == 4 * one.rows_a_step
        assert one.seconds is not None
        assert four.seconds == pytest.approx(one.seconds / 4 * DEVICES["h100"].fp32 / DEVICES["a100"].fp32)
        assert one.sharded is None
        assert one.average is not None
        assert one.memory is not None
        assert one.average.activations < one.memory.activations
        assert four.sharded is not None
        assert four.memory is not None
        assert four.sharded.optimizer == four.memory.optimizer / 4


def test_precision_is_the_named_gpus_unless_the_stage_says(tmp_path: Path, start: Path) -> None:
    stage = {key: value for key, value in configured(tmp_path)["sft"].items() if key != "use_cpu"}
    [half] = found_in(tmp_path, model=str(start), sft=stage, align=None).stages
    [single] = found_in(tmp_path, model=str(start), sft=stage | {"bf16": False}, align=None).stages
    for plan, mixed, rate in ((half, "bf16", "bf16"), (single, "no", "fp32")):
        assert plan.args.mixed_precision == mixed
        assert plan.operations is not None
        assert plan.seconds == plan.operations / (getattr(DEVICES["h100"], rate) * UTILISATION)


def test_a_reference_costs_a_pass(tmp_path: Path, start: Path) -> None:
    align = configured(tmp_path)["align"]
    cost = {}
    for name in ("simpo", "dpo"):
        [plan] = found_in(tmp_path, model=str(start), sft=None, align=align | {"objective": name}).stages
        cost[name] = plan.operations
    assert cost["dpo"] > cost["simpo"]


def test_quantities_that_are_no_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--gpus: must be from 1 to 4096, not 0"):
        found_in(tmp_path, options={"gpus": 0})
    with pytest.raises(ConfigError, match="did you mean 'h100'"):
        found_in(tmp_path, options={"gpu": "h1000"})
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="start it without a launcher"):
        found_in(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.5 s"),
        (12.4, "12 s"),
        (90, "2 min"),
        (3600, "1 h 00 min"),
        (7_500, "2 h 05 min"),
        (300_000, "3 days 11 h"),
    ],
)
def test_durations(value: float, text: str) -> None:
    assert duration(value) == text


def test_amounts() -> None:
    assert (amount(80e9), amount(1.26e9), amount(4.2e6)) == ("80.0 GB", "1.3 GB", "4.2 MB")


# ---- the command


def command(tmp_path: Path, *arguments: str, **changes: Any) -> Any:
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(configured(tmp_path, **changes)), encoding="utf-8")
    return CliRunner().invoke(app, ["run", str(path), *arguments])


def test_the_command_and_its_exit_codes(tmp_path: Path) -> None:
    result = command(tmp_path, "--dry-run", "--gpu", "4090", "--gpus", "2", "sft.num_train_epochs=3")
    assert result.exit_code == 0
    assert "num_train_epochs: 3" in result.stdout
    assert "NVIDIA GeForce RTX 4090 24 GB" in result.stdout
    assert "a real run would start; nothing was written" in result.stdout
    assert not (tmp_path / "run").exists()
    result = command(tmp_path, "--dry-run", model="some/\x1bmodel")
    assert result.exit_code == 2
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--gpu", "h100"], "belong to --dry-run"), (["--dry-run", "--resume"], "leave --resume out")],
)
def test_options_that_do_not_go_together(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = command(tmp_path, *arguments)
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)
