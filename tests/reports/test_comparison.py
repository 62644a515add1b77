"""The comparison page: every arm's estimate with its interval, and all arms on the same axes."""

from __future__ import annotations

import re
from pathlib import Path

from holdfast.reports.comparison import COLUMNS, Arm, Column, write_comparison

CURVE = [{"step": step, "mean_logps/chosen": -0.01 * step, "rejected/collapsed": 0.0} for step in (1, 2, 3)]
ARMS = [
    Arm("start", summary={"exact": (0.453, 0.4, 0.5)}),
    Arm("SLIME", CURVE, {"exact": (0.56, 0.5, 0.6), "chosen_drift": (0.003, -0.007, 0.013)}),
    Arm("DPO <b>", CURVE[:2], {"exact": (0.427, 0.4, 0.48), "chosen_drift": (-0.06, -0.07, -0.05)}),
]


def page_of(path: Path, arms: list[Arm], **options: object) -> str:
    written = write_comparison(path / "comparison.html", "Three arms", arms, ["One seed."], **options)  # type: ignore[arg-type]
    return written.read_text(encoding="utf-8")


def cells_of(page: str, arm: str) -> list[str]:
    """The texts of an arm's cells."""
    row = re.search(rf'<tr><th scope="row">{re.escape(arm)}</th>(.*?)</tr>', page, flags=re.DOTALL)
    assert row
    cells = re.findall(r"<td.*?</td>", row[1], flags=re.DOTALL)
    return [" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in cells]


def test_table_holds_estimates_and_intervals(tmp_path: Path) -> None:
    page = page_of(tmp_path, ARMS)
    assert cells_of(page, "start") == ["45.3 40.0 to 50.0"] + ["not measured"] * 3
    assert cells_of(page, "SLIME") == [
        "56.0 50.0 to 60.0",
        "not measured",
        "0.003 −0.007 to 0.013",
        "not measured",
    ]
    assert cells_of(page, "DPO &lt;b&gt;")[2] == "−0.060 −0.070 to −0.050"
    assert all(column.label in page for column in COLUMNS)
    assert "One seed." in page
    assert "Three arms" in page


def test_intervals_are_drawn_on_the_columns_scale(tmp_path: Path) -> None:
    page = page_of(tmp_path, ARMS, columns=[Column("chosen_drift", "Drift", "nats/token")])
    # The column runs from -0.07 to 0.013, 0.083 wide: -0.007 stands at 75.9 %, 0.003 at 87.95 %, -0.06 at
    # 12.05 %, -0.05 at 24.1 %.
    marks = re.findall(r'<line x1="([\d.]+)" x2="([\d.]+)"', page.split("How they got there")[0])
    assert marks == [("75.9", "100.0"), ("87.95", "87.95"), ("0.0", "24.1"), ("12.05", "12.05")]


def test_a_column_without_width_is_drawn_in_the_middle(tmp_path: Path) -> None:
    page = page_of(tmp_path, [Arm("one", summary={"exact": (0.0, 0.0, 0.0)})])
    assert '<line x1="50.0" x2="50.0"' in page


def test_curves_share_axes_and_say_who_was_not_measured(tmp_path: Path) -> None:
    arms = [*ARMS, Arm("no chosen", [{"step": 1, "rejected/collapsed": 0.5}])]
    page = page_of(tmp_path, arms, curves=["mean_logps/chosen", "rejected/collapsed"])
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert captions == [
        "Chosen log-prob<span>not measured: no chosen</span>",
        "Rejected tokens with p &lt; 1e-4",
    ]
    figures = re.findall(r"<figure>.*?</figure>", page, flags=re.DOTALL)
    assert [">SLIME</text>" in figure for figure in figures] == [True, True]
    assert [">no chosen</text>" in figure for figure in figures] == [False, True]
    assert ">start</text>" not in page  # it logged nothing, so it has no curve
    # An arm keeps its colour from panel to panel and in the legend: the third drawn arm has the third.
    assert all("var(--series-2)" in figure for figure in figures)
    assert "var(--series-3)" not in figures[0]
    assert "var(--series-3)" in figures[1]


def test_page_is_deterministic_and_self_contained(tmp_path: Path) -> None:
    page = page_of(tmp_path, ARMS)
    assert page == page_of(tmp_path, ARMS)
    assert "http" not in page
    assert "<script" not in page
    assert "DPO <b>" not in page
