"""Answers of mathematics against their references; what no answer may do is in tests/faults/test_hostile_answers.py."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import ConfigError, DataError
from holdfast.evaluation.tasks import verifier
from holdfast.evaluation.tasks.verifier import boxed_answer, check_answers

EQUAL = [
    ("18", "18"),
    ("18", "18.0"),
    ("70000", "70{,}000"),
    ("5", r"\$5"),
    ("025", "25"),
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", r"\dfrac{2}{4}"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}2)"),
    (r"\sqrt{8}", r"2\sqrt2"),
    (r"\begin{pmatrix} -2 \\ -14 \end{pmatrix}", r"\begin{pmatrix}-2\\-14\end{pmatrix}"),
    (r"\text{ellipse}", r"\text{ellipse}"),
    ("(x+1)^2", "x^2+2x+1"),
]
DIFFERENT = [
    ("18", "19"),
    (r"\frac{1}{2}", r"\frac{1}{3}"),
    (r"\text{ellipse}", r"\text{circle}"),
    (r"(3, \frac{\pi}{2})", r"(\frac{\pi}{2}, 3)"),
    ("x+1", "x-1"),
]


def test_equal_and_different_formulas_as_the_library_itself_has_them():
    from math_verify import parse, verify

    found = check_answers(EQUAL + DIFFERENT)
    direct = [
        verify(parse(rf"\boxed{{{reference}}}"), parse(rf"So it is \boxed{{{answer}}}."))
        for reference, answer in EQUAL + DIFFERENT
    ]
    assert found == ["right"] * len(EQUAL) + ["wrong"] * len(DIFFERENT)
    assert direct == [True] * len(EQUAL) + [False] * len(DIFFERENT)


def test_outcomes_do_not_depend_on_neighbours_or_processes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verifier, "SHARE", 5)
    monkeypatch.setattr(verifier, "cores", lambda: 2)
    pairs = [(str(number), "7") for number in range(10)]
    one, several = check_answers(pairs, processes=1), check_answers(pairs[::-1], processes=2)
    assert one == several[::-1]
    assert [place for place, outcome in enumerate(one) if outcome == "right"] == [7]


def test_nothing_to_check():
    assert check_answers([]) == []


def test_an_answer_without_end_is_not_even_read():
    assert check_answers([("1", "1" * (verifier.LONGEST + 1))]) == ["unreadable"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{7}.", "7"),
        (r"\boxed{1} no, \boxed{ 2 }", "2"),
        (r"\boxed{\frac{1}{2}} apples", r"\frac{1}{2}"),
        (r"\boxed{\left\{1\right\}}", r"\left\{1\right\}"),
        (r"\boxed {3}", "3"),
        (r"\fbox{4}", "4"),
        (r"\boxed{a\\}", r"a\\"),
        ("the answer is 7", None),
        (r"\boxed{}", None),
        (r"\boxed{\frac{1}{2}", None),
        (r"\boxed{1} then \boxed{2", None),
        (r"\boxed 7", None),
        (r"\boxedfoo{7}", None),
        ("", None),
    ],
)
def test_boxed_answer(text: str, answer: str | None):
    assert boxed_answer(text) == answer


@given(st.text(alphabet="{}\\boxed 1", max_size=40))
def test_boxed_answer_is_balanced_and_stands_in_the_text(text: str):
    found = boxed_answer(rf"\boxed{{{text}}}")
    if found is not None:
        plain = found.replace("\\\\", "").replace("\\{", "").replace("\\}", "")
        assert found in rf"\boxed{{{text}}}"
        assert plain.count("{") == plain.count("}")


@pytest.mark.parametrize("limit", [{"seconds": 0}, {"memory": 0}, {"processes": 0}])
def test_limits_below_one_are_refused(limit: dict[str, int]):
    with pytest.raises(ConfigError, match=next(iter(limit))):
        check_answers([("1", "1")], **limit)


def test_limits_too_low_for_any_answer_are_an_error_and_no_score():
    with pytest.raises(DataError, match="not even 1 = 1 can be checked"):
        check_answers([("1", "1")], seconds=1e-6)


def test_without_math_verify(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    monkeypatch.setattr(verifier.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'holdfast\[eval\]'"):
        check_answers([("1", "1")])


def test_a_process_that_ends_early_is_an_error_and_no_score(tmp_path, monkeypatch: pytest.MonkeyPatch):
    program = tmp_path / "verifier_process.py"
    program.write_text("print('right', flush=True)\nraise SystemExit('no memory left')\n", encoding="utf-8")
    monkeypatch.setattr(verifier, "PROGRAM", program)
    with pytest.raises(DataError, match="after 1 of 2: no memory left"):
        check_answers([("1", "1"), ("2", "2")])
