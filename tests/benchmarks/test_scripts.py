"""Every script runs on a toy, its forms agree, and what it writes is JSON with every raw figure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import BENCHMARKS


def call(script: str, *options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def measured(folder: Path, script: str, *options: Any) -> dict[str, Any]:
    path = folder / "report.json"
    done = call(script, *options, "--output", path)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert report["benchmark"] == script
    assert {"date", "commit", "machine", "versions", "arguments"} <= report.keys()
    return report


def check_setting(part: dict[str, Any], forms: list[str]) -> None:
    assert [row["form"] for row in part["table"]] == forms
    assert part["disagreements"] == []
    assert part["notes"] == []
    for run in part["raw"]:
        assert len(run["losses"]) == len(run["gradient_norms"]) == 2  # the warm-up and the measured step
        assert run["tokens"] > 0
        assert run["gradient_norms"][0] > 0
        assert run["grown_bytes"] == run["peak_bytes"] - run["before_bytes"]


@pytest.mark.soak
def test_preference_step(tmp_path: Path) -> None:
    forms = ["plain", "reference", "trl-dpo", "trl-cpo", "ours"]
    report = measured(tmp_path, "preference_step", "--quick", "--data", "synthetic", "--forms", *forms)
    (part,) = report["settings"]
    check_setting(part, forms)
    assert part["data"]["source"] == "synthetic"
    losses = {run["form"]: run["losses"] for run in part["raw"]}
    assert losses["ours"] == pytest.approx(losses["plain"], rel=1e-4)
    assert losses["trl-cpo"] != pytest.approx(losses["plain"], rel=1e-2)  # it has its own

    # The figures fill a page without measuring again; a report whose forms disagreed makes the script fail.
    page = tmp_path / "page.md"
    page.write_text("<!-- preference_step -->\n<!-- /preference_step -->\n", encoding="utf-8")
    shown = call("preference_step", "--report", tmp_path / "report.json", "--docs", page)
    assert shown.returncode == 0, shown.stderr
    assert "| TRL DPO trainer, loss swapped |" in page.read_text(encoding="utf-8")
    part["disagreements"] = ["holdfast: loss is 1e-02 from plain's"]
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(report), encoding="utf-8")
    refused = call("preference_step", "--report", wrong)
    assert refused.returncode == 1
    assert "holdfast: loss is 1e-02 from plain's" in refused.stderr


@pytest.mark.soak
def test_sft_step(tmp_path: Path) -> None:
    forms = ["plain-nll", "ours-nll", "plain-threshold", "ours-threshold", "trl"]
    report = measured(tmp_path, "sft_step", "--quick", "--data", "synthetic", "--forms", *forms)
    (part,) = report["settings"]
    check_setting(part, forms)


@pytest.mark.soak
def test_linear_logprob_quick(tmp_path: Path) -> None:
    report = measured(tmp_path, "linear_logprob", "--quick", "--dtype", "float32", "--head", "frozen")
    found = [(row["form"], row["vocab"]) for row in report["table"] if "failed" not in row]
    assert found[:2] == [("plain", 4096), ("chunked", 4096)]
    assert {row["form"] for row in report["table"]} == {"plain", "chunked", "trl", "liger-simpo-eager"}


def test_linear_logprob(tmp_path: Path) -> None:
    options = ["--tokens", 16, "--hidden", 16, "--vocab", 256, "--dtype", "float32", "--head", "trained"]
    report = measured(tmp_path, "linear_logprob", "--forms", "plain", "chunked", "--rounds", 1, *options)
    plain, chunked = report["table"]
    assert (plain["form"], chunked["form"]) == ("plain", "chunked")
    assert chunked["value"] == pytest.approx(plain["value"], rel=1e-5)
    assert chunked["gradient_norm"] == pytest.approx(plain["gradient_norm"], rel=1e-5)
    assert {"seconds", "warmup_seconds", "peak_bytes", "round"} <= report["raw"][0].keys()

    # A form that cannot run here keeps its row, with the reason.
    report["table"][1] = {key: chunked[key] for key in ("dtype", "head", "vocab", "form")} | {
        "failed": "no GPU"
    }
    path = tmp_path / "failed.json"
    path.write_text(json.dumps(report), encoding="utf-8")
    shown = call("linear_logprob", "--report", path)
    assert shown.returncode == 0
    assert "failed: holdfast, chunked: no GPU" in shown.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="its memory figures are Linux's")
def test_data_check(tmp_path: Path) -> None:
    options = ["--rows", 200, "--processes", 1, "--vocab", 300]
    report = measured(tmp_path, "data_check", *options)
    assert [(case["tokens"], case["rows"]) for case in report["table"]] == [(False, 200), (True, 200)]
