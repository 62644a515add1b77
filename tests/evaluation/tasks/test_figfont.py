"""Drawn words: which fonts, which rows, which part a word belongs to, and what an answer is worth."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.data.sft_layouts import read_messages
from holdfast.errors import ConfigError, DataError
from holdfast.evaluation.tasks import figfont
from holdfast.evaluation.tasks.figfont import (
    PINNED_FONTS,
    DrawnWord,
    draw,
    drawn_words,
    exact_match,
    figlet_fonts,
    part_of,
    similarity,
)

FEW = ("banner", "block", "standard")
WORDS = st.text(alphabet=string.ascii_letters, min_size=2, max_size=5)


@pytest.fixture(scope="module")
def fonts() -> figfont.Fonts:
    return figlet_fonts()


def test_a_drawing_is_the_font_s():
    assert draw("HI", "standard") == (" _   _ ___\n| | | |_ _|\n| |_| || |\n|  _  || |\n|_| |_|___|")


def test_the_fonts_are_the_pinned_ones(fonts: figfont.Fonts):
    assert list(fonts.names) == sorted(fonts.names)
    assert not set(fonts.names) & set(fonts.excluded)
    assert set(FEW) < set(fonts.names)
    assert fonts.sha256 == PINNED_FONTS


@pytest.mark.parametrize(("font", "reason"), [("term", "flat"), ("morse", "flat"), ("rot13", "flat")])
def test_a_font_that_writes_is_none_that_draws(fonts: figfont.Fonts, font: str, reason: str):
    assert fonts.excluded[font] == reason


@pytest.mark.parametrize(
    ("letters", "reason"),
    [
        ({"A": ""}, "blank"),
        ({"A": "\x1b\n|\n|"}, "unprintable"),
        ({"A": "A"}, "flat"),
        ({"A": "  B\n  |\n  |"}, "ambiguous"),  # moved to the right is no difference
        ({"WWWWW": "W" * 2000}, "large"),
        ({}, None),
    ],
)
def test_reasons_against_a_font(monkeypatch: pytest.MonkeyPatch, letters: dict[str, str], reason: str | None):
    monkeypatch.setattr(figfont, "draw", lambda text, font: letters.get(text, f"{text}\n|\n|"))
    assert figfont._letters("any")[1] == reason


def test_a_font_that_cannot_be_drawn(monkeypatch: pytest.MonkeyPatch):
    def fail(text: str, font: str) -> str:
        raise IndexError("pop from empty list")

    monkeypatch.setattr(figfont, "draw", fail)
    assert figfont._letters("any") == ([], "unusable")


def test_rows_depend_on_the_seed_alone():
    first, again, other = (drawn_words(20, seed, "train", fonts=FEW) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert drawn_words(10, 3, "train", fonts=FEW) == first[:10]  # more rows of a seed begin with the fewer


def test_no_row_stands_twice_and_lengths_are_as_said():
    rows = drawn_words(300, 0, "train", fonts=FEW)
    assert len({row.id for row in rows}) == len({row.drawing for row in rows}) == 300
    lengths = [len(row.word) for row in rows]
    assert {min(lengths), max(lengths)} == {2, 5}
    assert all(50 < lengths.count(length) < 100 for length in (2, 3, 4, 5))


def test_parts_share_no_word():
    train = {row.word for row in drawn_words(300, 0, "train", fonts=FEW)}
    held_out = {row.word for row in drawn_words(100, 1, "held_out", fonts=FEW)}
    assert not train & held_out


@given(WORDS)
def test_a_word_has_one_part_however_it_is_written(word: str):
    assert part_of(word) == part_of(word.lower()) == part_of(word.upper())


def test_one_word_in_ten_is_held_out():
    words = [a + b for a in string.ascii_uppercase for b in string.ascii_uppercase]
    assert 0.05 < sum(part_of(word) == "held_out" for word in words) / len(words) < 0.15


def test_own_words():
    own = ["cat", "dog", "it", "toolong", "x", "né", "bird", "cow", "hen", "fish", "bee", "ant", "elk"]
    rows = drawn_words(5, 0, "train", fonts=FEW, words=own)
    assert {row.word for row in rows} <= {word.upper() for word in own if part_of(word) == "train"}


def test_too_few_words_for_so_many_rows():
    word = next(word for word in ("CAT", "DOG", "COW") if part_of(word) == "train")
    with pytest.raises(ConfigError, match="only 3 different rows found where 4"):
        drawn_words(4, 0, "train", fonts=FEW, words=[word])
    with pytest.raises(DataError, match="no word of 2 to 5 letters"):
        drawn_words(1, 0, "train", fonts=FEW, words=["toolong", "x"])


@pytest.mark.parametrize("count", [0, -1, figfont.MOST_ROWS + 1])
def test_a_number_of_rows_that_cannot_be_had(count: int):
    with pytest.raises(ConfigError, match=f"not {count}"):
        drawn_words(count, 0, "train", fonts=FEW)


def test_an_unknown_font():
    with pytest.raises(ConfigError, match="no font 'no-such'"):
        drawn_words(1, 0, "train", fonts=["no-such"])


def test_a_row_is_one_to_train_on():
    row = DrawnWord("HI", "standard", draw("HI", "standard")).as_row()
    record = read_messages(row, "rows.jsonl:1")
    assert record.messages[-1] == {"role": "assistant", "content": "HI"}
    assert draw("HI", "standard") in record.prompt[0]["content"]


@pytest.mark.parametrize(
    ("answer", "exact", "like"),
    [
        ("MARTHA", 1.0, 1.0),
        (" martha\n", 1.0, 1.0),
        # by hand: six matches, one transposition: (1 + 1 + 5/6) / 3 = 0.9444; three common first letters add
        # 3 x 0.1 x (1 - 0.9444)
        ("MARHTA", 0.0, 0.9611),
        ("", 0.0, 0.0),
        ("xyz", 0.0, 0.0),
    ],
)
def test_scores(answer: str, exact: float, like: float):
    assert exact_match(answer, "Martha") == exact
    assert similarity(answer, "Martha") == pytest.approx(like, abs=1e-4)


@given(WORDS, WORDS)
def test_scores_are_between_0_and_1_and_agree_at_1(answer: str, word: str):
    assert 0 <= similarity(answer, word) <= 1
    assert exact_match(answer, word) == (similarity(answer, word) == 1)


@pytest.mark.parametrize("call", [lambda: similarity("a", "b"), lambda: figlet_fonts.__wrapped__()])
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, call):
    monkeypatch.setattr(figfont.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'holdfast\[eval\]'"):
        call()
