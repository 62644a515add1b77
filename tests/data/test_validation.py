"""Strict refuses bad rows and lists them; lenient trains on exactly the good ones and keeps the bad."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.data.faults import REASONS, Problem, Unreadable
from holdfast.data.sources import read_rows
from holdfast.data.validation import (
    SAMPLE,
    Checked,
    InvalidRows,
    check_rows,
    enforce,
    lay_out,
    write_quarantine,
)
from holdfast.errors import ConfigError, DataError

GOOD = [{"prompt": f"{n} + {n}?", "chosen": f"{2 * n}", "rejected": f"{2 * n + 1}"} for n in range(5)]

# line of the file, reason
BAD_LINES = [
    (b'{"prompt": "a", "chosen": "b"', "unparsable_json"),
    (b'{"prompt": "a", "chosen": "b", "rejected": "caf\xe9"}', "invalid_text"),
    (b'{"prompt": "a", "chosen": "b", "rejected": "\\udc80"}', "invalid_text"),
    (b'{"prompt": "a", "chosen": "b"}', "missing_key"),
    (b'{"prompt": "a", "chosen": "b", "rejected": 7}', "wrong_type"),
    (b'{"prompt": "a", "chosen": "b", "rejected": null}', "wrong_type"),
    (b'["a", "b", "c"]', "wrong_type"),
    (b'{"prompt": "a", "chosen": "  ", "rejected": "c"}', "empty_completion"),
    (b'{"prompt": " ", "chosen": "b", "rejected": "c"}', "empty_prompt"),
    (b'{"prompt": "a", "chosen": "c", "rejected": "c"}', "equal_pair"),
    (b'{"prompt": [{"role": "poet", "content": "a"}], "chosen": "b", "rejected": "c"}', "unknown_role"),
    (b'{"prompt": [{"role": "assistant", "content": "a"}], "chosen": "b", "rejected": "c"}', "turn_order"),
]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """The good rows, with a bad one behind each of the first, and the other bad ones at the end."""
    lines = [json.dumps(row).encode() for row in GOOD]
    for n, (line, _) in enumerate(BAD_LINES):
        lines.insert(2 * n + 1, line)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_every_bad_row_is_found_with_its_line_and_reason(mixed: Path) -> None:
    checked = check_rows(read_rows(mixed))
    assert checked.format == "preference_text"
    assert [record.prompt[0]["content"] for record in checked.records] == [row["prompt"] for row in GOOD]
    lines = mixed.read_bytes().splitlines()
    expected = [(f"{mixed}:{lines.index(line) + 1}", reason) for line, reason in BAD_LINES]
    assert [(problem.where, problem.reason) for problem in checked.problems] == expected
    assert checked.rows == len(GOOD) + len(BAD_LINES)
    assert checked.counts == {
        "wrong_type": 3,
        "invalid_text": 2,
        **dict.fromkeys(
            [
                "unparsable_json",
                "missing_key",
                "empty_completion",
                "empty_prompt",
                "equal_pair",
                "unknown_role",
                "turn_order",
            ],
            1,
        ),
    }
    assert set(checked.counts) <= set(REASONS)


def test_strict_lists_places_reasons_and_the_way_on(mixed: Path, tmp_path: Path) -> None:
    quarantine = tmp_path / "quarantine.jsonl"
    with pytest.raises(InvalidRows) as error:
        enforce(check_rows(read_rows(mixed)), "strict", quarantine)
    message = str(error.value)
    assert message.startswith("12 of 17 rows cannot be used: wrong_type 3, invalid_text 2, ")
    assert all(f"\n  {problem}" in message for problem in error.value.problems)
    assert message.endswith(
        "set `data.validation=lenient` to train on the other 5; "
        "the bad ones are then written to quarantine.jsonl."
    )
    message.encode("utf-8")  # whatever the rows hold, the report can be printed
    assert not quarantine.exists()


def test_lenient_gives_the_good_rows_and_keeps_the_bad(mixed: Path, tmp_path: Path) -> None:
    quarantine = tmp_path / "run" / "quarantine.jsonl"
    records = enforce(check_rows(read_rows(mixed)), "lenient", quarantine)
    assert [record.chosen[0]["content"] for record in records] == [row["chosen"] for row in GOOD]
    kept = [json.loads(line) for line in quarantine.read_text(encoding="ascii").splitlines()]
    assert [entry["reason"] for entry in kept] == [reason for _, reason in BAD_LINES]
    assert set(kept[0]) == {"where", "reason", "detail", "row"}
    assert kept[0]["row"] == BAD_LINES[0][0].decode()  # what could not be parsed, as it stood
    assert kept[2]["row"]["rejected"] == "\udc80"
    assert kept[3]["row"] == {"prompt": "a", "chosen": "b"}


def test_hostile_text_that_is_valid_trains() -> None:
    text = "NUL \x00, line separator \u2028, emoji 👩‍👩‍👧, right-to-left \u202e, BOM \ufeff, null 0️⃣"
    record = enforce(check_rows(read_rows([{"prompt": text, "chosen": text, "rejected": "no"}])))[0]
    assert record.prompt[0]["content"] == text


def test_every_bad_row_is_listed_unless_it_is_most_of_them() -> None:
    bad = [{"prompt": "a", "chosen": "b"} for _ in range(30)]
    with pytest.raises(InvalidRows, match=r"\n  \.\.\. and 10 more; ") as error:
        enforce(check_rows(read_rows([*GOOD, *bad])))
    assert len(error.value.problems) == 30
    with pytest.raises(InvalidRows) as error:
        enforce(check_rows(read_rows([*GOOD * 10, *bad])))
    assert str(error.value).count("missing_key: ") == 30


@pytest.mark.parametrize("mode", ["strict", "lenient"])
def test_nothing_usable_is_an_error(mode: Any) -> None:
    bad = [{"prompt": "a", "chosen": "b", "rejected": "b"}]
    with pytest.raises(InvalidRows, match="1 of 1 rows cannot be used: equal_pair 1"):
        enforce(check_rows(read_rows(bad)), mode)
    with pytest.raises(DataError, match="there are no rows"):
        enforce(check_rows(read_rows([])), mode)


def test_the_layout_is_found_for_each_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(GOOD[0]) + "\n")
    (tmp_path / "b.jsonl").write_text(
        json.dumps({"instruction": "Add.", "chosen": "4", "rejected": "5"}) + "\n"
    )
    checked = check_rows(read_rows(tmp_path))
    assert checked.formats == {
        str(tmp_path / "a.jsonl"): "preference_text",
        str(tmp_path / "b.jsonl"): "preference_alpaca",
    }
    assert checked.format == "preference_text, preference_alpaca"


def test_a_named_layout_is_not_searched_for() -> None:
    with pytest.raises(InvalidRows, match=r"missing_key.*'instruction'"):
        enforce(check_rows(read_rows(GOOD), format="preference_alpaca"))
    with pytest.raises(ConfigError, match="did you mean 'preference_text'"):
        check_rows(read_rows(GOOD), format="preference_txt")


def test_a_file_that_begins_with_unreadable_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{\n" * (SAMPLE + 5) + json.dumps(GOOD[0]) + "\n")
    checked = check_rows(read_rows(path))
    assert (len(checked.problems), len(checked.records)) == (SAMPLE + 5, 1)


def test_unreadable_rows_are_not_held_until_one_can_be_read() -> None:
    read = 0

    def rows() -> Iterator[tuple[str, Any]]:
        nonlocal read
        for read in range(1, 10 * SAMPLE):
            bad = read <= 2 * SAMPLE or read % 7 == 0
            yield f"rows.jsonl:{read}", Unreadable("unparsable_json", "not JSON", "{") if bad else GOOD[0]

    ahead = []
    for number, row in enumerate(lay_out(rows(), "preference"), start=1):
        assert row.where == f"rows.jsonl:{number}"
        assert (row.form is None) == (number <= 2 * SAMPLE)
        ahead.append(read - number)
    # one row at a time, but from the first that can be read those that decide the layout
    assert ahead[: 2 * SAMPLE] == [0] * (2 * SAMPLE)
    assert ahead[2 * SAMPLE : 3 * SAMPLE] == list(range(SAMPLE - 1, -1, -1))
    assert ahead[3 * SAMPLE :] == [0] * (7 * SAMPLE - 1)


def test_rows_of_a_named_layout_are_not_held() -> None:
    bad = ("rows.jsonl:1", Unreadable("unparsable_json", "not JSON", "{"))
    source = iter([bad, *read_rows(GOOD)])
    laid_out = lay_out(source, "preference", "preference_text")
    assert [next(laid_out).form.name for _ in range(2)] == ["preference_text"] * 2  # type: ignore[union-attr]
    assert len(list(source)) == len(GOOD) - 1


def test_rows_of_another_layout_say_how_their_file_is_read() -> None:
    alpaca = {"instruction": "Add.", "chosen": "4", "rejected": "5"}
    rows = [*GOOD, alpaca, {"question": "2 + 2?"}, {"prompt": "a", "chosen": "b"}]
    details = [problem.detail for problem in check_rows(read_rows(rows)).problems]
    read_as = (
        "the file is read as 'preference_text', the layout of 5 of its first 8 readable rows; name another with "
        "`data.format` (--format), or give such rows a file of their own"
    )
    assert details == [
        "the row has no 'prompt' (keys here: instruction, chosen, rejected); "
        f"this row looks like 'preference_alpaca', but {read_as}",
        f"the row has no 'prompt' (keys here: question); {read_as}",
        "the row has no 'rejected' (keys here: prompt, chosen)",
    ]
    checked = check_rows(read_rows(rows), format="preference_alpaca")
    assert checked.problems[0].detail.endswith(
        "this row looks like 'preference_text', but the file is read as 'preference_alpaca', "
        "the layout that was named"
    )


def test_a_file_without_one_readable_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{\n{\n")
    with pytest.raises(InvalidRows, match="2 of 2 rows cannot be used: unparsable_json 2"):
        enforce(check_rows(read_rows(path)))


def test_chosen_sides_as_demonstrations() -> None:
    checked = check_rows(read_rows(GOOD), kind="sft")
    assert checked.records[1].messages[-1] == {"role": "assistant", "content": "2"}


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'lenient'"):
        enforce(Checked([1]), "leniant")  # type: ignore[arg-type]


def test_quarantine_appends_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    first, second = Problem("a:1", "missing_key", "x", {}), Problem("a:2", "template", "y", {"when": b"\xff"})
    write_quarantine([first], path)
    write_quarantine([second], path, append=True)
    assert [json.loads(line)["where"] for line in path.read_text().splitlines()] == ["a:1", "a:2"]
    write_quarantine([second], path)
    assert len(path.read_text().splitlines()) == 1


def test_excerpts_are_short_and_printable() -> None:
    problem = Problem("a:1", "wrong_type", "x", {"text": "\ud800" + "long " * 100})
    assert len(problem.row_excerpt) == 200
    assert problem.row_excerpt.startswith('{"text": "\\ud800long ')
    assert Problem("a:1", "wrong_type", "x", [1]).row_excerpt == "[1]"


def test_unreadable_rows_keep_their_reason() -> None:
    rows = [("rows.jsonl:1", Unreadable("unparsable_json", "not JSON", "{")), ("rows.jsonl:2", GOOD[0])]
    assert [str(problem) for problem in check_rows(rows).problems] == [
        "rows.jsonl:1: unparsable_json: not JSON"
    ]
