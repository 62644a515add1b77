"""The page of an evaluation, and of two compared."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import DataError
from holdfast.reports.evaluation import bars, write_evaluation, write_flips
from holdfast.reports.evaluation_words import comparison, headline, missing_lines, number, score_lines

NASTY = "<script>alert(1)</script> [[10]] \u202eevil\x1b[31m\x00 \ud800 {{ 7 * 7 }}"


def interval(low: float, high: float) -> dict[str, float]:
    return {"low": low, "high": high, "level": 0.95}


def record(**changes: Any) -> dict[str, Any]:
    score = {
        "name": "MT-Bench",
        "value": 6.25,
        "interval": interval(5.8, 6.7),
        "n": 160,
        "clusters": 80,
        "note": "n",
    }
    return {
        "name": "MT-Bench",
        "official": True,
        "why_not_official": [],
        "model": "m",
        "judge": {"asked": "gpt-4"},
        "protocol": "p",
        "settings": {"seed": 0},
        "hashes": {"questions": "abc"},
        "scores": [
            score,
            {**score, "name": "strict", "value": None, "interval": None, "n": 0, "note": "none"},
        ],
        "per_category": [
            {**score, "name": "writing", "value": 8.0, "interval": interval(7, 10)},
            {**score, "name": "math", "value": 5.0, "interval": None},
            {**score, "name": "stem", "value": None, "interval": None, "note": "nothing there"},
        ],
        "missing": {
            "rate": 0.0125,
            "judgments_missing": ["81, turn 2"],
            "unread": {"82": "no rating"},
            "extra": [],
        },
        "questions": [
            {"id": 81, "category": "writing", "score": 6.0, "turn 1": 6, "turn 2": None, "flags": []},
            {
                "id": "<b>82</b>",
                "category": NASTY,
                "score": None,
                "turn 1": None,
                "turn 2": None,
                "flags": [NASTY],
            },
        ],
        "created": "2026-01-01T00:00:00Z",
    } | changes


def folder_of(path: Path, found: dict[str, Any], details: list[dict[str, Any]] | None = None) -> Path:
    path.mkdir(exist_ok=True)
    (path / "results.json").write_text(json.dumps(found), encoding="utf-8")
    if details is not None:
        (path / "details.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in details), encoding="utf-8"
        )
    return path


class Tags(HTMLParser):
    """The tags of a page, each closed; and its ids and the ids that it points to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.ids: set[str] = set()
        self.pointed: set[str] = set()
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        given = dict(attrs)
        self.ids |= {str(given["id"])} if "id" in given else set()
        if str(given.get("href", "")).startswith("#"):
            self.pointed.add(str(given["href"])[1:])
        if tag not in ("meta", "rect", "line", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "line"):
            assert self.open.pop() == tag


def test_the_page_shows_everything_harmlessly(tmp_path: Path) -> None:
    blocks = [{"title": "Answer, turn 1", "text": f"two\nlines {NASTY}"}]
    details = [{"id": 81, "blocks": blocks}, {"id": "<b>82</b>", "blocks": blocks}]
    page = write_evaluation(folder_of(tmp_path / "e", record(), details)).read_text("utf-8")
    tags = Tags(page)
    assert "script" not in tags.seen
    assert tags.pointed == {"q-0", "q-1"} <= tags.ids
    assert "m, MT-Bench: 6.250, 5.800 to 6.700 (95 %); 1.2 % missing or unread" in page
    assert "judgments missing: 1: 81, turn 2" in page
    assert "unread: 1: 82 (no rating)" in page
    assert "two\nlines &lt;script&gt;" in page
    assert "\\u202eevil\\x1b[31m\\x00" in page
    assert "{{ 7 * 7 }}" in page
    assert "questions" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_page_without_texts_and_a_withheld_headline(tmp_path: Path) -> None:
    found = record(why_not_official=["judged by x"], official=False)
    found["scores"][0] |= {"value": None, "interval": None, "note": "withheld: 12 % missing"}
    page = write_evaluation(folder_of(tmp_path / "e", found)).read_text("utf-8")
    Tags(page)
    assert "m, MT-Bench: no score, withheld: 12 % missing" in page
    assert "judged by x" in page
    assert "not recorded" in page


def test_bars_share_one_scale() -> None:
    writing, maths, stem = bars(record()["per_category"])
    assert (writing.width, writing.low, writing.high) == (80.0, 70.0, 100.0)
    assert (maths.width, maths.low) == (50.0, None)
    assert (stem.width, stem.value, stem.bounds) == (0.0, "—", "nothing there")
    assert bars([]) == []


def compared(**changes: Any) -> dict[str, Any]:
    return {
        "first": "before",
        "second": "after",
        "name": "MT-Bench",
        "difference": {"value": -0.25, "interval": interval(-0.5, 0.0), "n": 80, "clusters": 80},
        "strict": None,
        "withheld": [],
        "flips": [{"id": 81, "category": "writing", "first": 6.0, "second": 4.0}],
        "better": 0,
        "worse": 1,
        "same": 79,
        "unpaired": [82],
        "not_alike": ["seeds differ"],
        "sd": 1.0,
        "advice": ["no clear difference: the interval holds zero"],
    } | changes


def test_flips_show_both_texts(tmp_path: Path) -> None:
    first = folder_of(
        tmp_path / "a", record(), [{"id": 81, "blocks": [{"title": "Answer", "text": "was <b>"}]}]
    )
    second = folder_of(tmp_path / "b", record(), [{"id": 81, "blocks": [{"title": "Answer", "text": "is"}]}])
    page = write_flips(tmp_path / "c.html", compared(), first, second / "results.json").read_text("utf-8")
    tags = Tags(page)
    assert tags.pointed == {"f-0"} <= tags.ids
    assert "was &lt;b&gt;" in page
    assert "−2.000" in page
    empty = write_flips(tmp_path / "c.html", compared(flips=[]), first, second).read_text("utf-8")
    assert "no question changed" in empty


def test_a_comparison_in_words() -> None:
    lines = comparison(compared())
    assert lines[0] == "after against before, MT-Bench: −0.250, −0.500 to 0.000 (95 %), 80 questions paired"
    assert lines[1] == "0 better, 1 worse, 79 the same"
    assert lines[3:] == [
        "left out, without a score or a turn in one of the two: 1",
        "not of the models alone, perhaps: seeds differ",
    ]
    strict = {"value": 0.5, "interval": None, "n": 3, "clusters": 3}
    assert comparison(compared(strict=strict))[1] == "by the strict parser: +0.500, 3 questions paired"


def test_a_withheld_score_is_not_compared(tmp_path: Path) -> None:
    found = compared(difference=None, withheld=["before: withheld: 12 % missing"], advice=[])
    said = ["after against before, MT-Bench: no comparison, a score is missing", found["withheld"][0]]
    assert comparison(found)[:2] == said
    assert comparison(found)[2] == "of the questions that both have: 0 better, 1 worse, 79 the same"
    page = write_flips(tmp_path / "c.html", found, tmp_path, tmp_path).read_text("utf-8")
    assert all(line in page for line in said)


def test_scores_in_words() -> None:
    assert number(True) == "—"
    assert headline(record(missing={})) == "m, MT-Bench: 6.250, 5.800 to 6.700 (95 %)"
    assert score_lines(record()["scores"]) == [
        "MT-Bench: 6.250, 5.800 to 6.700 (95 %), n 160 of 80 questions (n)",
        "strict: — (none)",
    ]


def test_lists_are_cut_and_nested_ones_named() -> None:
    lines = missing_lines(
        {"rate": 0.5, "a": list(range(7)), "answers": {"twice": [3], "extra": []}, "b": None}, 3
    )
    assert lines == ["a: 7: 0; 1; 2 and 4 more", "answers twice: 1: 3"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scores": []}, "has no score"),
        ({"scores": 3}, "'scores' must be a list"),
        ({"missing": []}, "'missing'"),
    ],
)
def test_a_file_of_another_layout_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        write_evaluation(folder_of(tmp_path / "e", record(**change)))


def test_a_line_of_texts_that_is_none_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "e", record(), [{"id": 81, "blocks": []}, {"id": 82}])
    with pytest.raises(DataError, match=r"details.jsonl:2: not a question's texts"):
        write_evaluation(folder)
