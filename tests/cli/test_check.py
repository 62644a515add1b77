"""`holdfast check` in a terminal: what it says, what it cannot be made to do, and how it exits."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from holdfast.cli.check import ASCII, UNICODE, axis_line, finite, histogram_lines, render_check
from holdfast.cli.main import app
from holdfast.data.check_report import CheckReport
from holdfast.data.faults import REASONS
from holdfast.errors import DataError
from holdfast.reports import data_check_words as words
from tests.conftest import REPOSITORY
from tests.reports.test_data_check import RULE, check

START = REPOSITORY / "src" / "holdfast" / "demo" / "start"  # a tokenizer with a chat template
GOOD = {"prompt": "add 2 and 2", "chosen": "it is 4", "rejected": "it is 5"}
ESCAPE = re.compile(r"\x1b\[[\d;]*m")


def shown(report: dict[str, Any], *, colour: bool = False, encoding: str = "utf-8", width: int = 100) -> str:
    """What a terminal gets to print."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    system = "truecolor" if colour else None
    console = Console(
        file=file,
        force_terminal=colour,
        color_system=system,
        width=width,
        highlight=False,
        no_color=not colour,
    )
    render_check(report, console)
    file.flush()
    file.seek(0)
    return file.read()


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["check", *map(str, arguments), "--num-proc", "1"])


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def test_the_words_know_the_report() -> None:
    assert {field.name for field in fields(CheckReport)} == set(words.KEYS)
    assert set(words.REASONS) == set(REASONS)


def test_the_page_of_reasons_is_whole() -> None:
    page = (REPOSITORY / "docs" / "check.md").read_text(encoding="utf-8")
    assert [reason for reason in REASONS if f"| `{reason}` |" not in page] == []


def test_everything_found_is_printed() -> None:
    text = shown(check())
    assert text.splitlines()[0] == "✗ 10 of 100 rows cannot be used (10 %); 90 can."
    for expected in (
        "rows.jsonl: preference pairs, checked in 1.5 s, digest ab12",
        "100 rows: 90 good, 10 bad",
        "rows.jsonl   preference_text",
        "7   empty_completion   nothing to learn",
        "rows.jsonl:17  empty_completion\n      'chosen' is empty\n      {}\n  and 9 more",
        "mean 16.25",
        "max 1,234",
        "chosen   9 of 90 rows (10 %)   25 of 1,000 tokens (2.5 %)",
        "Length bias\n  Chosen answers are longer in 63.1 % of 90 pairs",
        "Duplicates\n  Rows with the prompt of an earlier row: 4.",
        "higher score in 75 %",
        "✓   one BOS   on 90 rows",
        "rows.jsonl:1  chosen",
        "Worth knowing\n  one thing worth knowing",
        "How to go on\n  Mend the bad rows",
    ):
        assert expected in text


def test_trained_tokens_are_green_or_between_marks() -> None:
    coloured = shown(check(), colour=True)
    assert "\x1b[32m4<end>\x1b[0m" in coloured
    assert "⟦" not in coloured
    assert "│ ⟦4<end>⟧\n" in shown(check())


def test_a_report_of_good_rows_is_short() -> None:
    good = check(
        refused={}, good=100, problems=[], lengths={}, truncation=None, template=[], examples=[], warnings=[]
    )
    text = shown(good)
    assert text.startswith("✓ All 100 rows can be trained on.\n")
    for heading in ("Bad rows", "Chat template", "as the model reads them", "Worth knowing"):
        assert heading not in text


def test_of_no_good_rows_nothing_more_is_said() -> None:
    nothing = check(
        good=0, refused={"wrong_type": 100}, lengths={}, truncation=None, template=[], examples=[]
    )
    text = shown(nothing)
    assert text.startswith("✗ None of 100 rows can be trained on.")
    for heading in ("Lengths", "Truncation", "Duplicates"):
        assert heading not in text


def test_histogram_by_hand() -> None:
    # Two lines of ramp " .#" are four levels: 4, 2, 1 of 4 rows fill 4, 2, 1; one of 100 would round to none.
    assert histogram_lines([4, 2, 1, 0], " .#", 1, height=2) == ["#   ", "##. "]
    assert histogram_lines([100, 1], " .#", 2, height=1) == ["##.."]
    assert histogram_lines([0, 0], " .#", 1, height=1) == ["  "]
    assert histogram_lines([], " .#", 1, height=1) == [""]


def test_axis_by_hand() -> None:
    assert axis_line(["0", "50", "100"], 12) == "0    50  100"  # 50 from the fifth column: (12 - 2) / 2
    assert axis_line(["0", "100"], 8) == "0    100"
    assert axis_line(["0", "2,000"], 3) == "0 2,000"  # below a narrow histogram it can still be read


@pytest.mark.parametrize("colour", [False, True])
def test_hostile_rows_are_shown_harmlessly(colour: bool) -> None:
    attack = "[bold red]x[/bold red][/] :smile: \x1b[2J\x1b]8;;http://a\x07\r\u202e\udc80\x9b"
    hostile = check(
        source=attack,
        formats={attack: attack},
        refused={attack: 10},
        problems=[{"where": attack, "reason": attack, "detail": attack, "row": attack}],
        lengths={attack: check()["lengths"]["prompt"]},
        truncation={
            "sides": {attack: check()["truncation"]["sides"]["prompt"]},
            "dropped": 0,
            "equal_after_cut": 0,
            **RULE,
        },
        template=[{"name": attack, "passed": True, "detail": attack}],
        examples=[{"where": attack, "sides": {attack: [(attack, True), (attack, False)]}}],
        warnings=[attack],
        digest=attack,
    )
    text = ESCAPE.sub("", shown(hostile, colour=colour, width=400))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", text)
    as_text = "[bold red]x[/bold red][/] :smile: \\x1b[2J\\x1b]8;;http://a\\x07\\r\\u202e\\udc80\\x9b"
    assert text.count(as_text) >= 12


def test_terminals_without_unicode() -> None:
    text = shown(check(), encoding="ascii")
    assert text.startswith("x 10 of 100 rows")
    assert "| [[4<end>]]\n" in text
    assert ASCII.keys() == UNICODE.keys()


def test_what_is_no_report_is_an_error() -> None:
    with pytest.raises(DataError, match="it lacks source, kind"):
        shown({"rows": 1})


def test_numbers_that_are_not_finite_become_null() -> None:
    report = {"a": [1.5, float("nan")], "b": {"c": (float("inf"), 2)}, "d": "NaN"}
    assert finite(report) == {"a": [1.5, None], "b": {"c": [None, 2]}, "d": "NaN"}


def test_good_rows_exit_with_0(tmp_path: Path) -> None:
    result = run(write_rows(tmp_path / "rows.jsonl", [GOOD, GOOD | {"prompt": "again"}]))
    assert result.exit_code == 0
    assert result.stdout.startswith("✓ All 2 rows can be trained on.")
    assert "preference_text" in result.stdout
    assert "--model NAME_OR_FOLDER" in result.stdout


def test_a_bad_row_is_exit_2_unless_lenient(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [GOOD, "{\n", GOOD | {"chosen": " "}])
    quarantine = tmp_path / "bad.jsonl"
    strict = run(rows, "--quarantine", quarantine)
    assert strict.exit_code == 2
    assert "✗ 2 of 3 rows cannot be used" in strict.stdout
    assert "rows.jsonl:2" in "".join(strict.stdout.split())  # whatever the folder's name, and the line breaks
    found = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert [one["reason"] for one in found] == ["unparsable_json", "empty_completion"]
    assert run(rows, "--validation", "lenient").exit_code == 0


def test_nothing_to_train_on_is_exit_2_however_lenient(tmp_path: Path) -> None:
    bad = GOOD | {"chosen": " "}
    assert run(write_rows(tmp_path / "rows.jsonl", [bad]), "--validation", "lenient").exit_code == 2


def test_json_is_one_object_and_nothing_else(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [GOOD, GOOD | {"chosen": "\udc80"}])
    page = tmp_path / "check.html"
    result = run(rows, "--json", "--html", page)
    assert result.exit_code == 2
    report = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert report.keys() == set(words.KEYS)
    assert (report["rows"], report["good"], report["refused"]) == (2, 1, {"invalid_text": 1})
    assert page.exists()
    assert "page:" in result.stderr


def test_the_page_is_written(tmp_path: Path) -> None:
    page = tmp_path / "check.html"
    result = run(write_rows(tmp_path / "rows.jsonl", [GOOD]), "--html", page)
    assert result.exit_code == 0
    assert "page: " in result.stdout
    assert "The only row can be trained on." in page.read_text(encoding="utf-8")


def test_with_a_model_tokens_are_counted_and_shown(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [GOOD, GOOD | {"prompt": "add " * 40}])
    refused = run(rows, "--model", START, "--max-length", "40")
    assert refused.exit_code == 2
    assert "the prompt alone has" in refused.stdout
    result = run(rows, "--model", START, "--max-length", "40", "--max-prompt-length", "20")
    assert result.exit_code == 0
    assert "Limits: max_length 40, max_prompt_length 20, longer rows: cut." in result.stdout
    assert "Lengths in tokens" in result.stdout
    assert re.search(r"prompt +1 of 2 rows \(50 %\)", result.stdout)
    assert "✓" in result.stdout.partition("Chat template")[2]
    assert "⟦it is 4<|end|>⟧" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jsonl"], "no file or folder 'nowhere.jsonl'"),
        (["rows.jsonl", "--max-length", "9"], "--model"),
        (["rows.jsonl", "--on-overflow", "drop"], "--model"),
        (["rows.jsonl", "--format", "preference_txt"], "did you mean 'preference_text'?"),
        (["rows.jsonl", "--html", "rows.jsonl/check.html"], "cannot write the page"),
        (["rows.jsonl", "--quarantine", "."], "bad rows cannot be written to '.': Is a directory"),
    ],
)
def test_what_cannot_be_done_says_what_to_do(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", [GOOD])
    result = run(*arguments)
    assert isinstance(result.exception, Exception)
    assert getattr(result.exception, "exit_code", None) == 2
    assert message in str(result.exception)
