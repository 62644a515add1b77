"""`check_source`: every bad row by place and reason, figures worked by hand, the same by any number of processes."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from holdfast.data.check import check_source
from holdfast.data.check_report import CheckReport
from holdfast.data.lengths import LengthRule
from holdfast.data.sources import read_rows
from holdfast.data.splits import digest
from holdfast.data.validation import LISTED, InvalidRows, check_rows, enforce
from holdfast.errors import ConfigError, DataError
from tests.data.encoding import BOS

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]


def row(prompt: str = "Hi", chosen: str = "yes", rejected: str = "no", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


# A dozen ways to spoil a line, each with the reason it is refused for. The number makes the text unique.
SPOILED: list[tuple[Callable[[int], bytes], str]] = [
    (lambda n: line(row(f"cut {n}"))[:-4], "unparsable_json"),
    (lambda n: b'{"prompt": "byte \xe9 %d", "chosen": "a", "rejected": "b"}' % n, "invalid_text"),
    (lambda n: b'{"prompt": "half \\ud83d %d", "chosen": "a", "rejected": "b"}' % n, "invalid_text"),
    (lambda n: line({"prompt": f"{n}", "chosen": "a"}), "missing_key"),
    (lambda n: line(row(f"{n}", chosen=n)), "wrong_type"),  # type: ignore[arg-type]
    (lambda n: line([f"{n}", "a", "b"]), "wrong_type"),
    (lambda n: line(row(f"{n}", chosen=" \n\t")), "empty_completion"),
    (lambda n: line(row(f"{n}", rejected="")), "empty_completion"),
    (lambda n: line(row(f"{n}", "same", " same\n")), "equal_pair"),
    (lambda n: line(row("  ")), "empty_prompt"),
    (lambda n: line(row([{"role": "critic", "content": f"{n}"}])), "unknown_role"),  # type: ignore[arg-type]
    (lambda n: line(row([{"role": "assistant", "content": f"{n}"}])), "turn_order"),  # type: ignore[arg-type]
]


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, str]], list[str]]:
    """1,000 lines, every 20th spoiled: the file, place and reason of each bad row, and the good rows' prompts."""
    path = tmp_path_factory.mktemp("spoiled") / "rows.jsonl"
    lines, bad, good = [], [], []
    for number in range(1, 1001):
        if number % 20 == 0:
            spoil, reason = SPOILED[(number // 20) % len(SPOILED)]
            lines.append(spoil(number))
            bad.append((f"{path}:{number}", reason))
        else:
            good.append(f"question {number}")
            lines.append(line(row(good[-1], "yes" * (number % 5 + 1), "no" * (number % 3 + 1))))
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path, bad, good


def without_time(report: CheckReport) -> CheckReport:
    return dataclasses.replace(report, seconds=0.0)


# --- bad rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_proc", [1, 2])
def test_every_bad_row_is_quarantined_with_its_place(
    spoiled: tuple[Path, list[tuple[str, str]], list[str]], tmp_path: Path, num_proc: int
) -> None:
    path, bad, _ = spoiled
    quarantine = tmp_path / "new" / "quarantine.jsonl"
    report = check_source(path, num_proc=num_proc, quarantine=quarantine)
    assert (report.rows, report.good, len(bad)) == (1000, 950, 50)
    assert sum(report.refused.values()) == 50
    kept = [json.loads(entry) for entry in quarantine.read_text(encoding="ascii").splitlines()]
    assert [(entry["where"], entry["reason"]) for entry in kept] == bad
    assert [(problem["where"], problem["reason"]) for problem in report.problems] == bad
    assert report.problems[0].keys() == {"where", "reason", "detail", "row"}


def test_strict_lists_them_and_lenient_keeps_exactly_the_good_ones(
    spoiled: tuple[Path, list[tuple[str, str]], list[str]],
) -> None:
    path, bad, good = spoiled
    checked = check_rows(read_rows(path))
    with pytest.raises(InvalidRows) as error:
        enforce(checked, "strict")
    assert [(problem.where, problem.reason) for problem in error.value.problems] == bad
    records = enforce(checked, "lenient")
    assert [record.prompt[0]["content"] for record in records] == good
    report = check_source(path, num_proc=1)
    assert report.digest == digest(records)
    assert report.refused == checked.counts


def test_rows_that_cannot_be_tokenized_are_refused_as_training_would(
    make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    rows = [row(), row(chosen="\nyes"), {"prompt": "a"}, row("b")]
    quarantine = tmp_path / "quarantine.jsonl"
    report = check_source(rows, tokenizer=make_tokenizer(merges=[("Ċ", "Ċ")]), quarantine=quarantine)
    assert (report.rows, report.good) == (4, 2)
    assert report.refused == {"missing_key": 1, "template": 1}
    kept = [json.loads(entry) for entry in quarantine.read_text().splitlines()]
    assert [entry["where"] for entry in kept] == ["dataset row 2", "dataset row 3"]
    assert kept[0]["row"] == rows[1]  # as it was read, to be mended there


def test_hostile_unicode_is_checked_shown_and_serialised(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    text = "NUL \x00 separators \u2028\u2029\x85 emoji 👩‍👩‍👧 marks \u202e\ufeff combining e\u0301 beyond \U0010ffff"
    path = tmp_path / "rows.jsonl"
    half = b'{"prompt": "\\udc80", "chosen": "\\ud800", "rejected": "b"}'
    path.write_bytes(b"\n".join([line(row(text, text, "no")), half, line(row(text, "yes", text))]))
    report = check_source(path, tokenizer=tokenizer, num_proc=1, quarantine=tmp_path / "bad.jsonl")
    assert (report.rows, report.good, report.refused) == (3, 2, {"invalid_text": 1})
    assert report.problems[0]["where"] == f"{path}:2"
    assert any((text + "<|im_end|>", True) in side for e in report.examples for side in e.sides.values())
    json.dumps(report.as_dict(), ensure_ascii=False).encode("utf-8")  # can be written and shown anywhere
    assert json.loads((tmp_path / "bad.jsonl").read_text(encoding="ascii"))["row"]["chosen"] == "\ud800"


def test_a_clean_source_empties_an_old_quarantine(tmp_path: Path) -> None:
    quarantine = tmp_path / "quarantine.jsonl"
    quarantine.write_text("of another day")
    check_source([row()], quarantine=quarantine)
    assert quarantine.read_text() == ""


# --- figures -----------------------------------------------------------------------------------------


def test_figures_in_characters_by_hand() -> None:
    rows = [
        row("Hi", "abcd", "a", score_chosen=2, score_rejected=1),  # +3
        row("Hi", "ab", "abc", score_chosen=1, score_rejected=1),  # -1
        row("Hi", "ab", "abc", score_chosen=1, score_rejected=1),  # -1, the row before again
        row("Bye", "ab", "a"),  # +1
    ]
    report = check_source(rows)
    assert (report.unit, report.truncation, report.template) == ("characters", None, [])
    assert (report.rows, report.good, report.refused, report.problems) == (4, 4, {}, [])
    assert report.formats == {"dataset": "preference_text"}
    chosen = report.lengths["chosen"]
    assert (chosen.mean, chosen.median, chosen.largest) == (2.5, 2.0, 4)
    assert (chosen.edges, chosen.counts) == ([0, 1, 2, 3, 4], [0, 0, 3, 1])
    assert report.lengths["prompt"].mean == (2 + 2 + 2 + 3) / 4
    assert (report.duplicate_prompts, report.duplicate_rows) == (2, 1)
    assert report.label_agreement == pytest.approx(1 / 3)
    # mean of 3, -1, -1, 1 is 1/2; squares of the deviations 6.25 + 2.25 + 2.25 + 0.25 = 11, over 3
    bias = report.length_bias
    assert bias is not None
    assert (bias.pairs, bias.mean_difference, bias.chosen_longer) == (4, 0.5, 0.5)
    assert bias.effect_size == pytest.approx(0.5 / (11 / 3) ** 0.5)


def test_figures_in_tokens_by_hand(tokenizer: PreTrainedTokenizerFast) -> None:
    # <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n: 1 + 7 + 1 + 1 + 1 + 10 = 21 tokens
    rows = [row("Hi", "a" * 9, "b"), row("Hi", "a", "b")]
    report = check_source(rows, tokenizer=tokenizer, rule=LengthRule(24))
    assert report.unit == "tokens"
    assert report.lengths["prompt"].mean == 21
    assert report.lengths["chosen"].mean == (10 + 2) / 2  # with the end token
    # prompt and longest answer, 21 + 10, are 7 over 24: the prompt gives way, no further than to 12
    assert report.truncation == {
        "sides": {
            "prompt": {"rows": 2, "rows_cut": 1, "tokens": 42, "tokens_cut": 7},
            "chosen": {"rows": 2, "rows_cut": 0, "tokens": 12, "tokens_cut": 0},
            "rejected": {"rows": 2, "rows_cut": 0, "tokens": 4, "tokens_cut": 0},
        },
        "dropped": 0,
        "equal_after_cut": 0,
        "max_length": 24,
        "max_prompt_length": None,
        "on_overflow": "cut",
    }
    assert "1 of 2 prompt texts are cut (50.0 %, 7 tokens)." in report.warnings


def test_rows_that_the_length_rule_leaves_out_are_neither_good_nor_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = [row(), row(chosen="a" * 50)]
    report = check_source(rows, tokenizer=tokenizer, rule=LengthRule(30, on_overflow="drop"))
    assert (report.rows, report.good, report.refused) == (2, 1, {})
    assert report.truncation is not None
    assert report.truncation["dropped"] == 1
    assert report.lengths["chosen"].largest == 4
    assert "1 rows are over the length limit and dropped." in report.warnings
    strict = check_source(rows, tokenizer=tokenizer, rule=LengthRule(30, on_overflow="error"))
    assert (strict.good, strict.refused) == (1, {"too_long": 1})


@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_the_report_does_not_depend_on_the_processes(
    spoiled: tuple[Path, list[tuple[str, str]], list[str]],
    tokenizer: PreTrainedTokenizerFast,
    with_tokenizer: bool,
) -> None:
    options: dict[str, Any] = {"tokenizer": tokenizer, "rule": LengthRule(40)} if with_tokenizer else {}
    one, two = (without_time(check_source(spoiled[0], num_proc=n, **options)) for n in (1, 2))
    assert one == two
    assert one.good == 950


def test_demonstrations(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"text": "Once upon"}, {"text": " "}]
    report = check_source(rows, "sft")
    assert (report.kind, report.good, report.refused) == ("sft", 1, {"empty_completion": 1})
    assert (report.lengths["completion"].mean, report.length_bias) == (9, None)
    chat = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "one"}]}]
    report = check_source(chat, "sft", tokenizer=tokenizer)
    assert report.lengths["completion"].mean == 4
    (example,) = report.examples
    pieces = example.sides["completion"]
    assert pieces == [
        ("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n", False),
        ("one<|im_end|>", True),
    ]


def test_a_source_without_rows() -> None:
    report = check_source([])
    assert (report.rows, report.good, report.lengths) == (0, 0, {})
    assert report.warnings == ["None of 0 rows can be trained on."]


# --- examples ----------------------------------------------------------------------------------------


def test_examples_show_what_is_trained(tokenizer: PreTrainedTokenizerFast) -> None:
    (example,) = check_source([row()], tokenizer=tokenizer).examples
    prompt = ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", False)
    assert example.where == "dataset row 1"
    assert example.sides == {
        "chosen": [prompt, ("yes<|im_end|>", True)],
        "rejected": [prompt, ("no<|im_end|>", True)],
    }
    (plain,) = check_source([row()]).examples
    assert plain.sides["chosen"] == [("user: Hi\n", False), ("yes", True)]


def test_examples_are_chosen_by_content_and_seed() -> None:
    rows = [row(f"question {n}") for n in range(600)]

    def shown(source: Any, **options: Any) -> list[str]:
        return [e.sides["chosen"][0][0] for e in check_source(source, **options).examples]

    assert len(set(shown(rows))) == 3
    assert shown(rows) == shown(rows[::-1], num_proc=2)
    assert shown(rows) != shown(rows, seed=1)
    assert shown(rows, examples=5)[:3] == shown(rows)
    assert shown(rows, examples=0) == []


# --- template checks ---------------------------------------------------------------------------------


def failed_checks(report: CheckReport) -> list[str]:
    return [check.name for check in report.template if not check.passed]


def test_a_sound_template_passes_every_check(tokenizer: PreTrainedTokenizerFast) -> None:
    report = check_source([row(), row("b")], tokenizer=tokenizer)
    assert len(report.template) == 6
    assert failed_checks(report) == []
    assert report.template[0].detail == "holds on 2 rows"
    assert report.template[1].detail == "the tokenizer begins texts with none"


OPEN = "{{ m['role'] + ': ' + m['content'] + '\n' }}"


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ({"ask": "{% if add_generation_prompt %}<think>{% endif %}"}, "how prompt and completion begin"),
        (BOS, "one BOS, at the head"),
        (BOS | {"before": "{{ bos_token }}{{ bos_token }}"}, "one BOS, at the head"),
        ({"content": "m['content'] | replace('a', '')"}, "the prompt's text is all there"),
        ({"content": "m['content'] | replace('m</', '</')"}, "the answer's text is all there"),
        ({"turn": OPEN, "ask": "{% if add_generation_prompt %}assistant: {% endif %}"}, "ends the turn"),
        ({"content": "m['content'].split('</think>')[-1]"}, "at least one token is trained"),
    ],
)
def test_a_template_that_fails_is_shown_with_its_first_row(
    make_tokenizer: MakeTokenizer, template: dict[str, Any], name: str
) -> None:
    rows = [row("1 a", "hm</think>"), row("2 a", "am</think>")]
    report = check_source(rows, tokenizer=make_tokenizer(**template))
    (failed,) = failed_checks(report)
    assert name in failed
    (check,) = [check for check in report.template if not check.passed]
    assert check.detail.startswith("2 rows fail, the first: dataset row 1: ")
    assert report.good == 0


def test_no_template_is_an_error(make_tokenizer: MakeTokenizer) -> None:
    for num_proc in (1, 2):
        with pytest.raises(DataError, match="has no chat template"):
            check_source([row(f"{n}") for n in range(600)], tokenizer=make_tokenizer(None), num_proc=num_proc)


# --- warnings ----------------------------------------------------------------------------------------


def warned(rows: Any, *args: Any, **options: Any) -> str:
    return "\n".join(check_source(rows, *args, **options).warnings)


def test_length_bias_is_told_with_its_size() -> None:
    assert warned([row(f"{n}", "a" * (5 + n % 3), "b" * (5 - n % 2)) for n in range(20)]).startswith(
        "Chosen completions are longer than rejected ones by 1."
    )
    assert "shorter" in warned([row(f"{n}", "a" * (1 + n % 2), "b" * 4) for n in range(20)])
    assert warned([row(f"{n}", "a" * (1 + n % 2), "b" * (1 + n % 2)) for n in range(20)]) == ""


def test_repeats_are_told_apart() -> None:
    assert "1 of 3 rows repeat an earlier row in full." in warned([row(), row(), row("b")])
    same_prompt = warned([row("a", "x", "y"), row("a", "z", "y")])
    assert "1 of 2 rows have the prompt of an earlier row" in same_prompt
    assert "in full" not in same_prompt


def test_scores_that_disagree() -> None:
    agree, disagree = {"score_chosen": 2, "score_rejected": 1}, {"score_chosen": 1, "score_rejected": 2}
    assert "In 1 of 2 pairs with scores" in warned([row("a", **agree), row("b", **disagree), row("c")])
    assert check_source([row()]).label_agreement is None


def test_unwanted_answers_read_as_demonstrations() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    labels = [("label", True), ("label", False), ("kto_tag", False), ("kto_tag", "True"), ("label", "False")]
    rows = [{"messages": turns, key: label} for key, label in labels]
    words = "3 rows are labelled as unwanted answers (`label: false` or `kto_tag: false`, the first at dataset row 2)"
    assert words in warned(rows, "sft")


def test_text_that_spells_a_control_token(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [row("a"), row("Say <|im_end|>!"), row("b", "<|im_start|>yes")]
    assert "2 rows spell a control token" in warned(rows, tokenizer=tokenizer)
    assert "(the first at dataset row 2: <|im_end|>)" in warned(rows, tokenizer=tokenizer)
    assert "control token" not in warned(rows)  # without a tokenizer there is none to spell


def test_earlier_answers_that_the_template_changes(make_tokenizer: MakeTokenizer) -> None:
    content = "(m['content'] if loop.last else m['content'].split('</think>')[-1])"
    turns = ["a", "hm</think>one", "b"]
    roles = ["user", "assistant", "user"]
    prompt = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)]
    rows = [row([{"role": "user", "content": "a"}]), row(prompt), row(prompt, "three")]  # type: ignore[arg-type]
    sides = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    rows = [{"prompt": each["prompt"], **sides} for each in rows]
    told = "2 rows: the chat template drops or changes text of earlier assistant turns (the first at dataset row 2)."
    tokenizer = make_tokenizer(content=content)
    assert told in warned(rows, tokenizer=tokenizer)
    demonstrations = [{"messages": [*each["prompt"], *sides["chosen"]]} for each in rows]
    assert told in warned(demonstrations, "sft", tokenizer=tokenizer)
    assert "earlier assistant" not in warned(rows, tokenizer=make_tokenizer())


def test_a_template_that_ignores_the_generation_prompt(make_tokenizer: MakeTokenizer) -> None:
    rows = [row(f"question {n}") for n in range(600)]
    told = (
        "The chat template ignores add_generation_prompt: the header of the assistant's turn "
        "('<|im_start|>assistant') is trained with the answer."
    )
    for num_proc in (1, 2):
        assert warned(rows, tokenizer=make_tokenizer(ask=""), num_proc=num_proc).count(told) == 1
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert told in warned([{"messages": turns}], "sft", tokenizer=make_tokenizer(ask=""))
    assert "add_generation_prompt" not in warned(rows, tokenizer=make_tokenizer())


def test_drawn_pairs_state_their_rule() -> None:
    rows = [{"instruction": "a", "completions": [{"response": f"{s}", "overall_score": s} for s in (1, 2)]}]
    assert "Pairs of 'ultrafeedback' rows are drawn: the best overall_score" in warned(rows)
    assert "with seed 5" in warned(rows, seed=5)


# --- bounds ------------------------------------------------------------------------------------------


def test_rows_are_not_held() -> None:
    """20,000 rows of 1 kB are 20 MB as text alone; what is counted of them is 16 bytes each."""

    def rows() -> Iterator[dict[str, str]]:
        for n in range(20_000):
            yield row(f"question {n}" + "?" * 300, f"{n} " + "y" * 300, f"{n} " + "n" * 400)

    check_source([row()])  # what is imported on the way is not counted
    tracemalloc.start()
    try:
        report = check_source(rows(), num_proc=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.good == 20_000
    assert peak < 6_000_000


def test_bad_rows_are_not_held(tmp_path: Path) -> None:
    rows = ({"prompt": "x" * 1000} for _ in range(20_000))
    tracemalloc.start()
    try:
        report = check_source(rows, format="preference_text", num_proc=1, quarantine=tmp_path / "bad.jsonl")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.refused == {"missing_key": 20_000}
    assert len(report.problems) == LISTED == 5000
    assert peak < 10_000_000  # the rows are 20 MB
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 20_000


def test_settings_are_refused_before_reading() -> None:
    with pytest.raises(ConfigError, match="did you mean 'preference_text'"):
        check_source([row()], format="preference_texts")
    with pytest.raises(DataError, match="no known layout"):
        check_source([{"a": 1}])
