"""A report holds the run's numbers, shows what is missing as missing, and cannot be made to run anything."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import DataError
from holdfast.reports.html import flatten, write_report

RECORD = {
    "name": "a small run",
    "verdicts": ["The chosen answers held."],
    "config": {
        "align": {"objective": {"name": "slime", "hard_margin": 1.5}, "seeds": [0, 1]},
        "resume": None,
    },
    "data": {"rows": 301, "align": 196, "summary": ["301 rows of one layout"]},
    "stages": {
        "align": {
            "seconds": 61.5,
            "last": {"loss": 0.123456},
            "held_out": {
                "changes": [
                    {
                        "name": "chosen log-prob",
                        "unit": "nats/token",
                        "before": -0.5,
                        "after": -0.375,
                        "change": 0.125,
                        "low": 0.0625,
                        "high": 0.25,
                        "pairs": 24,
                        "sentence": "said elsewhere",
                    },
                    {"name": "accuracy", "before": 0.5, "after": 0.5, "change": 0, "low": None, "high": None},
                ],
                "verdict": [],
            },
        },
        "sft": {"seconds": 30, "held_out": {"loss": 1.5}},
    },
    "seed": 7,
    "versions": {"torch": "2.13.0"},
}
METRICS = [
    {"stage": "sft", "step": 10, "loss": 2.5, "mean_logps/target": -2.5, "num_tokens": 12345},
    {"stage": "sft", "step": 20, "loss": 1.25, "mean_logps/target": -1.25, "num_tokens": 24690},
    {"stage": "align", "step": 5, "loss": 0.75, "mean_logps/chosen": -0.4, "grad_norm": None},
    {"stage": "align", "step": 10, "loss": 0.5, "mean_logps/chosen": -0.3, "grad_norm": 1.0},
]


def run_folder(
    path: Path, record: dict[str, Any] | None = None, metrics: list[dict[str, Any]] | None = None
) -> Path:
    (path / "run.json").write_text(json.dumps(RECORD if record is None else record))
    lines = [json.dumps(row) + "\n" for row in (METRICS if metrics is None else metrics)]
    (path / "metrics.jsonl").write_text("".join(lines))
    return path


def text_of(page: str) -> str:
    """What a reader sees of a page's tables and lists: tags and styles gone, spaces joined."""
    body = re.sub(r"<style.*?</style>|<svg.*?</svg>", " ", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def test_page_holds_the_runs_numbers(tmp_path: Path) -> None:
    path = write_report(run_folder(tmp_path))
    assert path == tmp_path / "report.html"
    page = path.read_text(encoding="utf-8")
    text = text_of(page)
    for expected in (
        "a small run",
        "The chosen answers held.",
        "Stage: sft",
        "loss 2.5 step 10 1.25 step 20 −1.25",
        "target log-prob nats/token −2.5 step 10 −1.25 step 20 +1.25",
        "tokens so far tokens 12,345 step 10 24,690 step 20 +12,345",
        "Stage: align",
        "chosen log-prob nats/token −0.4 step 5 −0.3 step 10 +0.1",
        "gradient norm L2 NaN step 5 1 step 10",
        "align.objective.hard_margin 1.5",
        "align.seeds [0, 1]",
        "resume null",
        "On held-out pairs Unit Before After Change 95 % interval Pairs",
        "chosen log-prob nats/token −0.5 −0.375 +0.125 0.0625 to 0.25 24",
        "accuracy 0.5 0.5 0 not measured not measured",
        "Data 301 rows of one layout rows 301 align 196 Configuration",
        "What each stage recorded align.seconds 61.5 sft.seconds 30 Provenance",
        "seed 7",
        "versions.torch 2.13.0",
        "training: 1 not finite",
    ):
        assert expected in text
    assert "0.123456" not in text  # the log's last row, which the table shows
    assert page.count("<svg") == 5  # loss and log-prob of each stage, and the second's gradient norm


def test_missing_is_not_measured_and_never_zero(tmp_path: Path) -> None:
    text = text_of(write_report(run_folder(tmp_path)).read_text())
    align, sft = text.split("Stage: sft")
    align = align.partition("During training")[2]
    sft = sft.partition("Data")[0]
    for label in ("loss, held out", "gradient norm L2", "throughput tokens/s"):
        assert f"{label} not measured not measured" in sft
    assert "chosen log-prob" not in sft  # a supervised stage has none
    for label in ("rejected log-prob nats/token", "reward margin", "pairs ranked right share"):
        assert f"{label} not measured not measured" in align


def test_empty_run_says_so(tmp_path: Path) -> None:
    text = text_of(write_report(run_folder(tmp_path, record={}, metrics=[])).read_text())
    assert "No verdict was recorded for this run." in text
    assert "not measured: the run logged no step" in text
    assert text.count("not recorded") == 4  # data, configuration, stages, provenance
    assert tmp_path.name in text  # the folder's name stands in for a title


def test_a_stage_that_logged_nothing_is_shown(tmp_path: Path) -> None:
    text = text_of(write_report(run_folder(tmp_path, {"stages": {"align": {"seconds": 1}}}, [])).read_text())
    assert "Stage: align During training" in text
    assert "rejected log-prob nats/token not measured not measured" in text


def test_page_is_self_contained(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path)).read_text()
    assert "http" not in page
    for outside in ("<script", "<link", "<img", "src=", "@import", "url(h"):
        assert outside not in page


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    attack = "<script>alert('x')</script>&\"'{{ 7 * 7 }}"
    record = {
        "name": attack,
        "verdicts": [attack],
        "config": {attack: attack},
        "data": {attack: 1},
        attack: attack,
    }
    metrics = [{"stage": attack, "step": step, f"loss/{attack}": 1.0, attack: 2.0} for step in (1, 2)]
    page = write_report(run_folder(tmp_path, record, metrics)).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "{{ 7 * 7 }}" in page


def test_rewriting_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_report(run_folder(tmp_path)).read_bytes()
    assert write_report(tmp_path).read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "report.html", "run.json"]


def test_ids_stand_once(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path)).read_text()
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert ids
    assert len(set(ids)) == len(ids)
    for used in re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page):
        assert "".join(used) in ids


@pytest.mark.parametrize("fault", ["run.json", "metrics.jsonl"])
def test_missing_or_corrupt_files_are_named(tmp_path: Path, fault: str) -> None:
    run_folder(tmp_path)
    (tmp_path / fault).write_text("{")
    with pytest.raises(DataError, match=re.escape(fault)):
        write_report(tmp_path)
    (tmp_path / fault).unlink()
    with pytest.raises(DataError, match=re.escape(fault)):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"verdicts": "all well"}, "'verdicts' must be a list of sentences, not str"),
        ({"data": [1]}, "'data' must be a mapping, not list"),
        ({"data": {"summary": "x"}}, "'data.summary' must be a list of sentences, not str"),
        ({"stages": []}, "'stages' must be a mapping, not list"),
        ({"stages": {"sft": 3}}, "stage 'sft' must be a mapping, not int"),
        ({"stages": {"sft": {"held_out": [1]}}}, "stage 'sft': 'held_out' must be a mapping, not list"),
        (
            {"stages": {"sft": {"held_out": {"changes": ["x"]}}}},
            "stage 'sft': a change must be a mapping, not str",
        ),
    ],
)
def test_a_record_of_another_layout_is_named(tmp_path: Path, record: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"run.json: {reason}")):
        write_report(run_folder(tmp_path, record))


def test_odd_characters_survive(tmp_path: Path) -> None:
    record = {"name": "a\udc80b\x00c\u2028d é"}
    page = write_report(run_folder(tmp_path, record)).read_bytes().decode("utf-8")
    assert "a\\udc80b\\x00c\u2028d é" in page


def test_settings_are_flattened_as_the_command_line_names_them() -> None:
    nested = {"align": {"objective": {"name": "slime"}, "lr": 5e-07}, "tags": [], "none": {}}
    assert list(flatten(nested)) == [
        ("align.objective.name", "slime"),
        ("align.lr", "5e-07"),
        ("tags", "[]"),
        ("none", "{}"),
    ]
