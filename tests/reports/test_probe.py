"""The page of a probe: it stands alone, escapes what it shows, and draws what was measured."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from holdfast.errors import DataError
from holdfast.reports.probe import bars, points, write_probe
from tests.capability.test_report import piloted, report


def page_of(found: object, tmp_path: Path) -> str:
    return write_probe(tmp_path / "probe.html", found).read_text(encoding="utf-8")  # type: ignore[arg-type]


def test_it_stands_alone_and_is_whole(tmp_path: Path) -> None:
    page = page_of(report().to_dict(), tmp_path)
    assert not re.search(r"(src|href)=|https?://|<script", page)
    HTMLParser().feed(page)
    assert page.count("<svg") == page.count("</svg>") == 3  # histograms, one curve
    assert "Pilot" not in page
    assert "By source" not in page  # one source is no comparison
    assert "given away, p &lt; 0.01" in page


def test_a_pilot_has_a_table(tmp_path: Path) -> None:
    page = page_of(piloted().to_dict(), tmp_path)
    assert "<h2>Pilot</h2>" in page
    assert page.count('<tr><th scope="row">p</th>') == 1


def test_a_json_file_serves_as_well(tmp_path: Path) -> None:
    own = report()
    own.save(tmp_path / "probe.json")
    assert page_of(own.to_dict(), tmp_path) == page_of(tmp_path / "probe.json", tmp_path)
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="other.json"):
        write_probe(tmp_path / "page.html", tmp_path / "other.json")


def test_texts_are_escaped(tmp_path: Path) -> None:
    found = report().to_dict()
    found["probed"]["data"] = "<script>alert(1)</script>"
    found["hardest"][0]["where"] = "\x1b[31m<b>"
    page = page_of(found, tmp_path)
    assert "<script" not in page
    assert "\\x1b[31m&lt;b&gt;" in page


def test_a_bin_that_is_not_empty_can_be_seen() -> None:
    summary = {"histogram": [1] + [0] * 98 + [10_000]}
    found = bars(summary)
    assert (found[0].height, found[1].height, found[-1].height) == (1, 0, 100)
    assert found[0].label == "p from 0.00 to 0.02: 1 token"


def test_a_group_without_a_mean_leaves_a_gap() -> None:
    nothing = {"value": None, "low": None, "high": None}
    groups = [
        {"name": "0", "mean_probability": {"value": 0.25, "low": 0.2, "high": 0.5}},
        {"name": "1", "mean_probability": nothing},
        {"name": "2-3", "mean_probability": {"value": 1.0, "low": None, "high": None}},
    ]
    assert [(p.place, p.mean, p.low, p.high) for p in points(groups)] == [(0, 75, 80, 50), (2, 0, 0, 0)]


def test_a_page_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write the page"):
        write_probe(tmp_path / "file" / "page.html", report().to_dict())
