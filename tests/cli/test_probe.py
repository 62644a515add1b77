"""`holdfast probe` on files: what it prints and writes, its options, and its errors."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from transformers import PreTrainedTokenizerBase
from typer.testing import CliRunner

from holdfast.capability import CapabilityReport, probe
from holdfast.capability.measure import load
from holdfast.cli.main import app
from holdfast.demo.run import start_folder
from holdfast.demo.world import sft_rows, tiny_tokenizer
from holdfast.errors import ConfigError, DataError, HoldfastError, Interrupted, ModelError
from holdfast.experiments.config import load_config
from holdfast.models.loading import load_tokenizer
from holdfast.models.tiny import tiny_model

PILOT = "use_cpu=true per_device_train_batch_size=4 learning_rate=1e-3 adapter=null".split()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer: PreTrainedTokenizerBase = tiny_tokenizer()
    model = tiny_model(
        "qwen3",
        len(tokenizer),
        hidden_size=32,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of demonstrations in the current directory."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in sft_rows(40, 0)), encoding="utf-8")
    return file


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["probe", *map(str, arguments)])


def stdout(result: Result) -> str:
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


def failure(*arguments: Any) -> HoldfastError:
    result = run(*arguments)
    assert isinstance(result.exception, HoldfastError), result.output
    return result.exception


def test_it_shows_the_regime_and_a_yaml_that_loads(start: Path, rows: Path) -> None:
    shown = stdout(run(start, "rows.jsonl", "--max-length", 128))
    assert shown.startswith("weak: capability ")
    assert "Objective: nll" in shown
    assert "p of tokens that carry information" in shown
    assert "given away, p < 0.01" in shown
    assert "saved: runs/probe-tiny/probe.json" in shown
    pasted = shown[shown.index("\nmodel: ") : shown.index("saved:")]
    file = rows.with_name("run.yaml")
    file.write_text(pasted, encoding="utf-8")
    config = load_config(file)
    assert (config.model.name, config.data.source, config.data.max_length) == (str(start), "rows.jsonl", 128)
    assert (config.sft or {})["objective"] == {"name": "nll"}


def test_json_is_the_report_and_nothing_else(start: Path, rows: Path) -> None:
    result = run(start, rows, "--max-length", 128, "--rows", 20, "--seed", 3, "--json", "-o", "out")
    printed = json.loads(stdout(result))
    report = CapabilityReport.from_dict(printed)
    assert report == CapabilityReport.load(Path("out/probe.json"))
    assert report == probe(start, None, rows, max_length=128, limit=20, seed=3)
    assert report.probed.sampled == 20
    assert "saved: out/probe.json" in result.stderr


def test_all_rows_and_another_dtype(start: Path, rows: Path) -> None:
    shown = json.loads(stdout(run(start, rows, "--rows", 0, "--dtype", "bfloat16", "--json")))
    assert (shown["probed"]["sampled"], shown["probed"]["dtype"]) == (40, "bfloat16")


def test_the_page_is_written(start: Path, rows: Path) -> None:
    shown = stdout(run(start, rows, "--html", "probe.html"))
    assert "page: probe.html" in shown
    assert "Capability probe" in Path("probe.html").read_text(encoding="utf-8")


def test_a_pilot_is_part_of_the_report(start: Path, rows: Path) -> None:
    shown = stdout(run(start, rows, "--max-length", 128, "--pilot", 2, "--samples", 1, "-o", "out", *PILOT))
    assert "2 steps a candidate" in shown
    assert "likelihood: " in shown
    report = CapabilityReport.load(Path("out/probe.json"))
    assert report.pilot is not None
    assert [arm.name for arm in report.pilot.arms][:2] == ["start", "nll"]
    assert report.pilot.settings["learning_rate"] == 1e-3
    assert report.pilot.settings["adapter"] is None
    assert "no candidate gave a single answer" in report.recommendation.reason
    Path("run.yaml").write_text(report.recommendation.yaml, encoding="utf-8")
    pasted = load_config("run.yaml")
    assert pasted.adapter is None
    assert (pasted.sft or {})["learning_rate"] == 1e-3
    assert (pasted.sft or {})["per_device_train_batch_size"] == 4


@pytest.fixture
def no_pilot(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Lets the pilot end in an exception."""

    def end_in(error: BaseException) -> None:
        def fail(*arguments: Any, **options: Any) -> None:
            raise error

        # the package has a function of the module's name
        monkeypatch.setattr(importlib.import_module("holdfast.capability.pilot"), "pilot", fail)

    return end_in


def test_a_pilot_that_fails_leaves_the_probe(
    start: Path, rows: Path, no_pilot: Callable[[BaseException], None]
) -> None:
    no_pilot(ModelError("out of memory"))
    result = run(start, rows, "--max-length", 128, "--pilot", 2, "-o", "out", "--html", "out/probe.html")
    assert isinstance(result.exception, ModelError)
    assert "saved before the pilot: out/probe.json" in result.stderr
    assert CapabilityReport.load("out/probe.json") == probe(start, None, rows, max_length=128)
    assert "Capability probe" in Path("out/probe.html").read_text(encoding="utf-8")
    no_pilot(KeyboardInterrupt())
    stopped = failure(start, rows, "--pilot", 2, "-o", "out")
    assert isinstance(stopped, Interrupted)
    assert "the pilot was stopped; what the probe found is in out/probe.json" in str(stopped)


def test_a_pilot_trains_on_the_quantized_weights_that_were_asked_for(
    start: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def seen(*arguments: Any, settings: dict[str, Any], **options: Any) -> None:
        asked.append(settings)
        raise ModelError("not today")

    monkeypatch.setattr(importlib.import_module("holdfast.capability.pilot"), "pilot", seen)
    monkeypatch.setattr("holdfast.models.quantized.find_spec", lambda name: name)  # as if it were installed
    assert "not today" in str(failure(start, rows, "--pilot", 1, "model.quantization=nf4", "bf16=true"))
    assert (asked[0]["quantization"], asked[0]["bf16"]) == ("nf4", True)
    refused = failure(start, rows, "--pilot", 1, "model.quantization=nf4", "adapter=null")
    assert "needs an adapter" in str(refused)
    assert len(asked) == 1


def test_the_probe_reads_the_model_and_tokenizer_of_the_pilot(
    start: Path, rows: Path, no_pilot: Callable[[BaseException], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = load_tokenizer(str(start))
    other.chat_template = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    other.save_pretrained("other")
    loaded: list[tuple[Any, ...]] = []

    def spied(model: Any, tokenizer: Any, **options: Any) -> Any:
        loaded.append((model, tokenizer, options["revision"]))
        return load(model, tokenizer, **options)

    monkeypatch.setattr("holdfast.capability.measure.load", spied)
    no_pilot(ModelError("not today"))
    failure(start, rows, "--pilot", 1, "-o", "out", "model.tokenizer=other", "model.revision=v1")
    assert loaded == [(str(start), "other", "v1")]
    assert CapabilityReport.load("out/probe.json").every == probe(start, "other", rows).every
    assert CapabilityReport.load("out/probe.json").every != probe(start, None, rows).every


def test_a_template_from_elsewhere_is_used_and_kept(start: Path, rows: Path) -> None:
    template = "{% for m in messages %}<|{{ m.role }}|>x{{ m.content }}<|end|>{% endfor %}"
    template += "{% if add_generation_prompt %}<|assistant|>x{% endif %}"
    Path("chat.jinja").write_text(template, encoding="utf-8")
    shown = json.loads(stdout(run(start, rows, "--chat-template", "chat.jinja", "--json")))
    plain = json.loads(stdout(run(start, rows, "--json")))
    assert shown["every"]["mean_probability"] != plain["every"]["mean_probability"]
    written = yaml.safe_load(shown["recommendation"]["yaml"])
    assert written["model"] == {"name": str(start), "chat_template": "chat.jinja"}


def test_the_shipped_model_is_strong_on_what_it_was_trained_on(rows: Path) -> None:
    with start_folder() as folder:
        shown = stdout(run(folder, rows, "--max-length", 128))
    assert shown.startswith("strong: capability ")
    assert "Objective: p\n" in shown


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["learning_rate=1e-3"], ConfigError, "ask for one with --pilot N"),
        (["--pilot", -1], ConfigError, "count from 0"),
        (["--seed", -1], ConfigError, "seed: must be at least 0"),
        (["--batch-size", 0], ConfigError, "batch_size must be at least 1"),
        (["--max-length", 1], ConfigError, "max_length must be at least 2"),
        (["--format", "nonsense"], ConfigError, "nonsense"),
        (["--source-column", "nowhere"], DataError, "source_column 'nowhere': no row has it"),
        (["--max-length", 4096], ModelError, "positions"),
        (["-o", "rows.jsonl/out"], DataError, "cannot write"),
        (["--html", "rows.jsonl/page.html"], DataError, "cannot write the page"),
    ],
)
def test_faults_are_one_sentence(
    arguments: list[Any], kind: type[HoldfastError], message: str, start: Path, rows: Path
) -> None:
    if "4096" in map(str, arguments):
        long = {"prompt": "a", "completion": "b" * 3000}
        rows.write_text(rows.read_text(encoding="utf-8") + json.dumps(long) + "\n", encoding="utf-8")
    found = failure(start, rows, *arguments)
    assert isinstance(found, kind)
    assert message in str(found)
    assert found.exit_code == 2


def test_missing_rows_and_models_are_named(start: Path, rows: Path) -> None:
    assert "did you mean 'rows.jsonl'" in str(failure(start, "row.jsonl"))
    assert "no model folder" in str(failure("./nowhere/model", rows))


def test_a_bad_row_is_refused_or_left_out(start: Path, rows: Path) -> None:
    rows.write_text(rows.read_text(encoding="utf-8") + "{\n", encoding="utf-8")
    refused = str(failure(start, rows))
    assert "rows.jsonl:41" in refused
    assert "--validation lenient" in refused
    shown = json.loads(stdout(run(start, rows, "--validation", "lenient", "--json")))
    assert (shown["probed"]["rows"], shown["probed"]["refused"]) == (40, 1)


def test_lenient_is_named_only_where_it_would_help(start: Path, rows: Path) -> None:
    rows.write_text("{\n[\n", encoding="utf-8")
    for mode in ("strict", "lenient"):
        refused = str(failure(start, rows, "--validation", mode))
        assert "No usable row is left" in refused
        assert "--validation lenient" not in refused


def test_stopped_by_the_user_it_writes_nothing(
    start: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("holdfast.capability.measure.score_tokens", stop)
    found = failure(start, rows)
    assert isinstance(found, Interrupted)
    assert found.exit_code == 130
    assert not Path("runs").exists()
