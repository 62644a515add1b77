"""A check's words say its numbers, its page holds them all, and hostile rows stay text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import DataError
from holdfast.reports import data_check_words as words
from holdfast.reports.data_check import bars, write_check
from tests.reports.test_html import text_of

RULE = {"max_length": 1024, "max_prompt_length": None, "on_overflow": "cut"}
BIAS = {
    "pairs": 90,
    "mean_difference": 41.3,
    "chosen_longer": 0.631,
    "effect_size": 0.21,
    "low": 0.1,
    "high": 0.32,
}


def check(**changes: Any) -> dict[str, Any]:
    """A report of 100 rows, 90 of them good and 10 bad, as `CheckReport.as_dict()` gives it."""
    lengths = {
        "edges": [0, 10, 20, 30, 40],
        "counts": [1, 4, 0, 2],
        "mean": 16.25,
        "median": 14.0,
        "largest": 1234,
    }
    return {
        "source": "rows.jsonl",
        "kind": "preference",
        "formats": {"rows.jsonl": "preference_text"},
        "rows": 100,
        "good": 90,
        "refused": {"empty_completion": 7, "unparsable_json": 3},
        "problems": [
            {
                "where": "rows.jsonl:17",
                "reason": "empty_completion",
                "detail": "'chosen' is empty",
                "row": "{}",
            }
        ],
        "unit": "tokens",
        "lengths": {"prompt": lengths, "chosen": lengths, "rejected": lengths},
        "truncation": {
            "sides": {
                "prompt": {"rows": 90, "rows_cut": 0, "tokens": 900, "tokens_cut": 0},
                "chosen": {"rows": 90, "rows_cut": 9, "tokens": 1000, "tokens_cut": 25},
            },
            "dropped": 0,
            "equal_after_cut": 0,
            **RULE,
        },
        "length_bias": BIAS,
        "duplicate_prompts": 4,
        "duplicate_rows": 1,
        "label_agreement": 0.75,
        "template": [
            {"name": "one BOS", "passed": True, "detail": "on 90 rows"},
        ],
        "examples": [
            {
                "where": "rows.jsonl:1",
                "sides": {"chosen": [("user: 2 + 2?\n", False), ("4<end>", True), ("\n", False)]},
            }
        ],
        "warnings": ["one thing worth knowing"],
        "digest": "ab12",
        "seconds": 1.5,
    } | changes


@pytest.mark.parametrize(
    ("changes", "passed", "sentence"),
    [
        ({}, False, "10 of 100 rows cannot be used (10 %); 90 can."),
        ({"refused": {}, "good": 100}, True, "All 100 rows can be trained on."),
        ({"refused": {}, "good": 1, "rows": 1}, True, "The only row can be trained on."),
        (
            {"refused": {}},
            True,
            "90 of 100 rows can be trained on; the length rule leaves out the rest.",
        ),
        (
            {"refused": {"template": 100}, "good": 0},
            False,
            "None of 100 rows can be trained on.",
        ),
        ({"rows": 0, "good": 0, "refused": {}}, False, "There are no rows."),
        (
            {
                "refused": {},
                "good": 100,
                "template": [{"name": "one BOS", "passed": False, "detail": "two"}],
            },
            False,
            "The chat template fails: one BOS.",
        ),
    ],
)
def test_verdict(changes: dict[str, Any], passed: bool, sentence: str) -> None:
    assert words.verdict(check(**changes)) == (passed, sentence)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {},
            "Chosen answers are longer in 63.1 % of 90 pairs, and 41.3 tokens longer on average: "
            "d = 0.21 [0.10, 0.32], a small bias to longer answers.",
        ),
        (
            {"mean_difference": -3, "effect_size": -0.9, "low": -1.2, "high": -0.6, "chosen_longer": 0.25},
            "Chosen answers are longer in 25 % of 90 pairs, and 3 tokens shorter on average: "
            "d = -0.90 [-1.20, -0.60], a large bias to shorter answers.",
        ),
        ({"effect_size": 0.1, "low": 0.05, "high": 0.15}, "a negligible bias to longer answers."),
        ({"effect_size": 0.5, "low": 0.4, "high": 0.6}, "a medium bias to longer answers."),
        (
            {"effect_size": 0.1, "low": -0.05, "high": 0.25},
            "d = 0.10 [-0.05, 0.25], which is not distinguishable from no bias.",
        ),
        ({"effect_size": float("nan")}, "on average; too little varies for an effect size."),
        ({"low": None, "high": None}, "on average; too little varies for an effect size."),
    ],
)
def test_length_bias_in_words(changes: dict[str, Any], sentence: str) -> None:
    assert words.bias_words(BIAS | changes, "tokens").endswith(sentence)


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 7, "0 %"),
        (1, 3, "33.3 %"),
        (1, 100_000, "< 0.1 %"),  # one bad row is never none
        (99_999, 100_000, "> 99.9 %"),  # and all but one is never all
        (3, 3, "100 %"),
        (0, 0, "0 %"),
    ],
)
def test_shares(part: int, whole: int, text: str) -> None:
    assert words.share(part, whole) == text


def test_what_was_not_measured_is_said() -> None:
    bare = check(
        truncation=None, length_bias=None, label_agreement=None, unit="characters", refused={}, good=100
    )
    found = dict(words.findings(bare))
    assert found["Length bias"].startswith("Not measured: that takes at least two good pairs")
    assert found["Labels and scores"] == "Not measured: the rows have no scores."
    assert words.cuts(bare) == []
    assert words.cut_notes(bare) == ["Not measured: that takes a tokenizer."]
    assert [way for way in words.ways_on(bare) if "--model" in way]


def test_supervised_rows_have_no_pairs_to_speak_of() -> None:
    assert [name for name, _ in words.findings(check(kind="sft"))] == ["Duplicates"]


def test_duplicates() -> None:
    repeated = "Rows with the prompt of an earlier row: 4. Rows that repeat one in full: 1."
    assert dict(words.findings(check()))["Duplicates"] == repeated
    alone = check(duplicate_prompts=0, duplicate_rows=0)
    assert dict(words.findings(alone))["Duplicates"] == "None: every row has a prompt of its own."


def test_cuts_of_each_side() -> None:
    assert words.cuts(check()) == [
        ("prompt", "0 of 90 rows (0 %)", "0 of 900 tokens (0 %)"),
        ("chosen", "9 of 90 rows (10 %)", "25 of 1,000 tokens (2.5 %)"),
    ]
    assert "loses its end token" in words.cut_notes(check())[1]
    unlimited = {"max_length": None, "max_prompt_length": None, "on_overflow": "cut"}
    truncation = {"sides": {}, "dropped": 1, "equal_after_cut": 2}
    assert words.cut_notes(check(truncation=truncation | unlimited)) == [
        "Limits: none.",
        "Dropped for their length: 1 row.",
        "Left out, as both sides are the same after the cut: 2 pairs.",
    ]


def test_limits() -> None:
    assert words.limits(RULE) == "Limits: max_length 1,024, longer rows: cut."


def test_ways_on() -> None:
    mend, lenient = words.ways_on(check())
    assert "--quarantine" in mend
    assert "other 90" in lenient
    assert "validation=lenient" in lenient
    ready = check(source="my rows.jsonl", refused={}, good=100)
    assert words.ways_on(ready) == ["Train: `holdfast run CONFIG.yaml data.source='my rows.jsonl'`"]
    assert len(words.ways_on(check(good=0, refused={"template": 100}))) == 1  # nothing to go on with


def test_examples_keep_their_lines() -> None:
    report = words.harmless(check(warnings=["a\nb"]))
    assert report["examples"][0]["sides"]["chosen"][0][0] == "user: 2 + 2?\n"
    assert report["warnings"] == ["a\\nb"]


def test_long_texts_keep_both_ends_and_say_what_is_left_out() -> None:
    text = "a" * 40 + "-" * 100 + "b" * 20
    assert words.middle_out(text, 60) == "a" * 40 + " [... 100 characters ...] " + "b" * 20
    assert words.middle_out(text, 160) == text
    assert words.middle_out(text, 150) == text  # a note would be longer than the ten characters it stands for
    pieces = [(str(number), number % 2 == 1) for number in range(20)]
    assert words.abridge(pieces, 100) == [*pieces[:6], ("[... 8 pieces ...]", False), *pieces[14:]]


def test_a_shared_prompt_is_shown_once() -> None:
    def sides(prompt: str) -> dict[str, Any]:
        return {
            "sides": {"chosen": [("ask", False), ("yes", True)], "rejected": [(prompt, False), ("no", True)]}
        }

    assert words.example_sides(sides("ask"), 100) == {
        "chosen": [("ask", False), ("yes", True)],
        "rejected": [("[the same prompt] ", False), ("no", True)],
    }
    assert words.example_sides(sides("sk"), 100)["rejected"] == [("sk", False), ("no", True)]


def test_bars_and_axis() -> None:
    found = check()["lengths"]["prompt"]
    assert bars(found, "tokens") == [
        (0, 25.0, "0 to 10 tokens: 1 row"),
        (1, 100.0, "10 to 20 tokens: 4 rows"),
        (2, 0, "20 to 30 tokens: 0 rows"),
        (3, 50.0, "30 to 40 tokens: 2 rows"),
    ]
    assert words.axis(found) == ["0", "20", "40"]
    assert words.axis(found | {"edges": [0, 1000]}) == ["0", "1,000"]
    assert words.axis(found | {"edges": [0, 500, 1000, 9000]}) == [
        "0",
        "1,000+",
    ]  # the last bin is a long tail
    thin = {"edges": [0, 1, 2], "counts": [1, 1000]}
    assert bars(thin, "tokens")[0].height == 1  # one row of a thousand can still be seen


def test_page_holds_what_was_found(tmp_path: Path) -> None:
    path = write_check(tmp_path / "check.html", check())
    text = text_of(path.read_text(encoding="utf-8"))
    for expected in (
        "✗ 10 of 100 rows cannot be used (10 %); 90 can.",
        "one thing worth knowing",
        "preference pairs, checked in 1.5 s, digest ab12",
        "100 rows: 90 good, 10 bad",
        "rows.jsonl preference_text",
        "empty_completion nothing to learn: empty, or nothing that can be seen 7",
        "rows.jsonl:17 empty_completion 'chosen' is empty {}",
        "and 9 more",
        "prompt mean 16.25, median 14, max 1,234 tokens",
        "chosen 9 of 90 rows (10 %) 25 of 1,000 tokens (2.5 %)",
        "a small bias to longer answers",
        "Rows with the prompt of an earlier row: 4. Rows that repeat one in full: 1.",
        "higher score in 75 % of the pairs",
        "✓ one BOS on 90 rows",
        "Or train on the other 90",
    ):
        assert expected in text.replace("&#39;", "'")
    page = path.read_text(encoding="utf-8")
    assert re.findall(r"<mark[^>]*>([^<]*)</mark>", page) == ["Trained tokens", "4&lt;end&gt;"]
    assert page.count("<rect") == 9  # three sides, three bins each that are not empty
    assert "http" not in page
    for outside in ("<script", "<link", "<img", "src=", "@import", "url("):
        assert outside not in page


def test_page_of_little(tmp_path: Path) -> None:
    bare = check(
        refused={}, good=100, problems=[], lengths={}, truncation=None, template=[], examples=[], warnings=[]
    )
    text = text_of(write_check(tmp_path / "check.html", bare).read_text())
    assert "✓ All 100 rows can be trained on." in text
    assert "Chat template" not in text
    assert "as the model reads them" not in text


def test_of_no_good_rows_nothing_more_is_said(tmp_path: Path) -> None:
    nothing = check(
        good=0, refused={"wrong_type": 100}, lengths={}, truncation=None, template=[], examples=[]
    )
    assert words.findings(nothing) == words.cut_notes(nothing) == []
    assert "digest" not in words.facts(nothing)
    text = text_of(write_check(tmp_path / "check.html", nothing).read_text())
    for heading in ("Lengths", "Truncation", "Balance"):
        assert heading not in text


def test_a_page_from_the_json_file_is_the_same(tmp_path: Path) -> None:
    report = tmp_path / "check.json"
    report.write_text(json.dumps(check()))
    fresh = write_check(tmp_path / "fresh.html", check()).read_bytes()
    assert write_check(tmp_path / "read.html", report).read_bytes() == fresh


def test_hostile_rows_stay_text(tmp_path: Path) -> None:
    attack = "<script>alert('x')</script>\x1b[2J\u202e\udc80{{ 7 * 7 }}"
    hostile = check(
        source=attack,
        formats={attack: attack},
        refused={attack: 10},
        problems=[{"where": attack, "reason": attack, "detail": attack, "row": attack}],
        template=[{"name": attack, "passed": True, "detail": attack}],
        examples=[{"where": attack, "sides": {attack: [(attack, True), (attack, False)]}}],
        warnings=[attack],
        digest=attack,
    )
    page = write_check(tmp_path / "check.html", hostile).read_bytes().decode("utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "\\x1b[2J\\u202e\\udc80{{ 7 * 7 }}" in page
    assert not set(page) & {"\x1b", "\u202e"}


def test_what_is_no_report_is_named(tmp_path: Path) -> None:
    other = tmp_path / "run.json"
    other.write_text(json.dumps({"name": "a run", "rows": 3}))
    with pytest.raises(
        DataError, match=r"run\.json: is no report of `holdfast check`: it lacks source, kind"
    ):
        write_check(tmp_path / "check.html", other)
    with pytest.raises(DataError, match=r"cannot write the page '.*run\.json/check\.html': "):
        write_check(other / "check.html", check())
    assert write_check(tmp_path / "new" / "check.html", check()).is_file()
