"""Measuring processes, memory, rates and reports."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

import harness


def script(folder: Path, body: str) -> Path:
    file = folder / "script.py"
    file.write_text(f"import json, os, sys\ncase = json.loads(sys.argv[2])\n{body}\n", encoding="utf-8")
    return file


def test_a_case_reaches_its_process_and_the_last_line_comes_back(tmp_path: Path) -> None:
    file = script(
        tmp_path, "print('chatter')\nprint(json.dumps({'twice': 2 * case['n'], 'x': os.environ['X']}))"
    )
    assert harness.in_own_process(file, {"n": 4}, {"X": "y"}) == {"twice": 8, "x": "y"}


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    file = script(tmp_path, "sys.stderr.write('a warning\\n')\nraise MemoryError('4 GB wanted')")
    assert harness.in_own_process(file, {}) == {"failed": "MemoryError: 4 GB wanted"}


def test_a_killed_process_names_the_signal(tmp_path: Path) -> None:
    file = script(tmp_path, "os.kill(os.getpid(), 9)")
    assert harness.in_own_process(file, {}) == {"failed": "ended by signal 9 (out of memory?)"}


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be set back on Linux only")
def test_peak_memory_counts_what_comes_after_the_start_alone() -> None:
    block = 200_000_000
    before = bytearray(block)
    del before
    memory = harness.PeakMemory("cpu")
    memory.start()
    assert memory.read()["grown_bytes"] < block // 2  # the earlier peak is forgotten
    later = bytearray(block)
    del later
    found = memory.read()
    assert block // 2 < found["grown_bytes"] < 2 * block
    assert found["peak_bytes"] - found["before_bytes"] == found["grown_bytes"]


def test_matmul_rates_are_rates() -> None:
    rates = harness.matmul_rates("float32", "cpu", repeats=2)
    assert len(rates) == 2
    assert all(rate > 0 for rate in rates)


def test_spread() -> None:
    assert harness.spread([3.0, 1.0, 8.0]) == {"median": 3.0, "min": 1.0, "max": 8.0}


def test_versions_of_what_is_missing_are_none() -> None:
    found = harness.versions(["torch", "no-such-package"])
    assert found["torch"]
    assert found["no-such-package"] is None


def test_a_report_is_json_and_leaves_out_where_it_goes(tmp_path: Path) -> None:
    args = argparse.Namespace(rounds=3, data=Path("rows.json"), output=tmp_path / "a" / "b.json", case=None)
    report = harness.report_header("toy", args)
    assert report["arguments"] == {"rounds": 3, "data": "rows.json"}
    path = harness.write_report(report, args.output)
    read = json.loads(path.read_text(encoding="utf-8"))
    assert read["machine"]["usable_cores"] >= 1
    assert set(harness.PACKAGES) == set(read["versions"])


def test_tables_line_up(capsys: pytest.CaptureFixture[str]) -> None:
    harness.print_table(["form", "n"], [["plain", "1"], ["ours", "12"]])
    assert capsys.readouterr().out == "form    n\nplain   1\nours   12\n"
