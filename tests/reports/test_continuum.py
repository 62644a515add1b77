"""The continuum's table: means, ranges and signs by hand; and what is no cell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import DataError
from holdfast.reports.continuum import read_cells, summarize, table, write_continuum


def cell(objective: str, seed: int, greedy: float, sampled: float, **more: Any) -> dict[str, Any]:
    return {
        "setting": "weak",
        "objective": objective,
        "seed": seed,
        "spec": {"name": objective},
        "greedy": {"exact": greedy},
        "sampled": {"exact": sampled},
        **more,
    }


NLL = [cell("nll", 0, 0.90, 0.5), cell("nll", 1, 0.92, 0.5)]


def signs(*others: tuple[float, float]) -> tuple[str, str]:
    rows = summarize([*NLL, *(cell("p", seed, *shares) for seed, shares in enumerate(others))])
    return rows[1].sign("greedy"), rows[1].sign("sampled")


def test_a_sign_needs_every_seed_and_a_point() -> None:
    assert signs((0.95, 0.4), (0.97, 0.3)) == ("+", "-")
    assert signs((0.95, 0.6), (0.80, 0.3)) == ("0", "0")  # the seeds disagree
    assert signs((0.905, 0.495), (0.925, 0.495)) == ("0", "0")  # half a point
    assert signs((0.90, 0.5), (0.95, 0.5)) == ("0", "0")  # one seed does not differ


def test_seeds_are_paired() -> None:
    rows = summarize([*NLL, cell("p", 1, 0.91, 0.6)])
    assert rows[1].against["greedy"] == [pytest.approx(-0.01)]
    assert summarize([cell("p", 0, 0.5, 0.5)])[0].sign("greedy") == ""  # no NLL to hold it against


def test_the_table_by_hand() -> None:
    start = {
        "mean_probability": 0.714,
        "share_above_0.55": 0.712,
        "informative_mean_probability": 0.158,
        "informative_share": 0.278,
    }
    begun = cell("start", 0, 0.0, 0.0, start=start)
    del begun["spec"]
    cells = [begun, *NLL, cell("p", 0, 0.0, 0.1), cell("p", 1, 0.1, 0.1)]
    rows = summarize(cells)
    text = table(rows, {"weak": start}, {"weak": {"p": "-"}})
    assert "mean 0.714; of those that carry information (28 %) 0.158; share above 0.55 0.712." in text
    assert "| start | 0.0 | 0.0 | − | − |  |" in text
    assert "| nll | 91.0 [90.0, 92.0] | 50.0 [50.0, 50.0] |  |  |  |" in text
    assert "| p | 5.0 [0.0, 10.0] | 10.0 [10.0, 10.0] | − | − | − |" in text


def test_table_and_figure_are_written_and_are_the_same_each_time(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(one) + "\n" for one in NLL), encoding="utf-8")
    write_continuum(results, {}, tmp_path)
    first = [(tmp_path / name).read_bytes() for name in ("table.md", "figure.svg")]
    write_continuum(results, {}, tmp_path)
    assert [(tmp_path / name).read_bytes() for name in ("table.md", "figure.svg")] == first
    assert b">nll<" in first[1]
    assert b">weak<" in first[1]


@pytest.mark.parametrize("line", ["{", "[]", '{"setting": "a", "objective": "b", "seed": 0}'])
def test_a_line_that_is_no_cell_is_named(line: str, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    results.write_text(json.dumps(NLL[0]) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"results\.jsonl, line 2: no cell of a sweep"):
        read_cells(results)
