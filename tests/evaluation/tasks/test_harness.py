"""lm-evaluation-harness on two tiny models; where it is not installed, what is said then."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from holdfast.errors import ConfigError, DataError
from holdfast.evaluation.results import read_results
from holdfast.evaluation.tasks import harness
from holdfast.evaluation.tasks.harness import Suite, run_suite
from holdfast.models.tiny import tiny_bpe_tokenizer, tiny_model

TASK = """\
task: tiny_letters
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["a", "b"]
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
metadata: {{version: 1.0}}
"""


def measured(folder: Path, model: str, *, suite: Suite, value: float = 0.5) -> None:
    metric = {"task": "t", "name": "acc", "value": value, "by_question": {"0": value, "1": value}}
    row = {
        "asked": {"model": model, "files": harness.files_of(model), **harness._plain(suite)},
        "versions": {"t": 1},
        "metrics": [metric],
    }
    (folder / ("model.json" if model == "m" else "base.json")).write_text(json.dumps(row), encoding="utf-8")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the harness were here: what was measured is read without it."""
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(harness.metadata, "version", lambda name: "0.4.9")


@pytest.mark.usefixtures("installed")
def test_what_was_measured_is_not_measured_again(tmp_path: Path):
    suite = Suite(("t",), limit=2)
    measured(tmp_path, "m", suite=suite, value=0.25)
    measured(tmp_path, "b", suite=suite, value=0.75)
    results = run_suite("m", suite, tmp_path, base="b")
    assert [(score.name, score.value) for score in results.scores] == [
        ("t acc, difference to the base", -0.5),
        ("t acc", 0.25),
    ]
    assert results.questions[0] == {
        "id": "t/0",
        "category": "t",
        "score": 0.25,
        "metric": "acc",
        "base": 0.75,
    }
    assert results.why_not_official == ["the first 2 questions of each task only"]
    assert read_results(tmp_path).scores == results.scores


@pytest.mark.usefixtures("installed")
def test_a_model_trained_anew_in_its_folder_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "m" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"before")
    measured(tmp_path, "m", suite=Suite(("t",)))
    assert run_suite("m", Suite(("t",)), tmp_path).scores[0].value == 0.5
    weights.write_bytes(b"trained further")
    with pytest.raises(ConfigError, match="another output folder"):
        run_suite("m", Suite(("t",)), tmp_path)


@pytest.mark.usefixtures("installed")
def test_figures_of_another_suite_are_refused(tmp_path: Path):
    measured(tmp_path, "m", suite=Suite(("t",)))
    with pytest.raises(ConfigError, match="another output folder"):
        run_suite("m", Suite(("t",), fewshot=5), tmp_path)
    (tmp_path / "model.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="remove it"):
        run_suite("m", Suite(("t",)), tmp_path)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"tasks": ()}, "no task named"),
        ({"tasks": ("t",), "limit": 0}, "limit must be at least 1"),
        ({"tasks": ("t",), "batch_size": 0}, "batch_size must be at least 1"),
        ({"tasks": ("t",), "fewshot": -1}, "fewshot must be 0 or more"),
    ],
)
def test_settings_that_measure_nothing(wrong: dict[str, object], words: str):
    with pytest.raises(ConfigError, match=words):
        Suite(**wrong)


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'holdfast\[lm-eval\]'"):
        run_suite("m", Suite(("arc_easy",)), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_the_harness_itself(tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"question": f"letter {n}:", "answer": n % 2}) + "\n" for n in range(12)),
        encoding="utf-8",
    )
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "tiny_letters.yaml").write_text(TASK.format(rows=rows), encoding="utf-8")
    tokenizer = tiny_bpe_tokenizer(["letter 0123456789: a b"], 300)
    for seed, name in enumerate(("m", "b")):
        tiny_model("qwen3", len(tokenizer), seed=seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    suite = Suite(("tiny_letters",), include=str(tasks), dtype="float32", device="cpu")
    results = run_suite(str(tmp_path / "m"), suite, tmp_path / "out", base=str(tmp_path / "b"))
    values = {score.name: score for score in results.scores}
    assert values["tiny_letters acc"].n == 12
    assert values["tiny_letters acc, difference to the base"].interval is not None
    assert len(results.questions) == 12
    with pytest.raises(ConfigError, match="has no task 'no_such'"):
        run_suite(str(tmp_path / "m"), Suite(("no_such",), include=str(tasks)), tmp_path / "other")
    with pytest.raises(DataError, match="cannot run arc_easy"):
        run_suite(str(tmp_path / "m"), Suite(("arc_easy",), include=str(tasks)), tmp_path / "other")
