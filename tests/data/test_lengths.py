"""The length rule, worked by hand and as properties; the report's counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.data.faults import RowFault
from holdfast.data.lengths import LengthReport, LengthRule, cut_left
from holdfast.errors import ConfigError


@pytest.mark.parametrize(
    ("rule", "lengths", "kept"),
    [
        # fits: 6 + 4 = 10
        (LengthRule(10), (6, 4), (6, 4)),
        # one over: the prompt gives one token
        (LengthRule(10), (7, 4), (6, 4)),
        # the prompt may give way down to 10 // 2 = 5, exactly what the completion needs
        (LengthRule(10), (9, 5), (5, 5)),
        # the prompt keeps 5; 8 do not fit into the other 5
        (LengthRule(10), (9, 8), (5, 5)),
        # a prompt shorter than half keeps all it has
        (LengthRule(10), (3, 20), (3, 7)),
        # odd: 9 // 2 = 4 for the prompt, 5 for the completion
        (LengthRule(9), (8, 8), (4, 5)),
        (LengthRule(2), (5, 5), (1, 1)),
        # the cap comes first, and frees no more than it must
        (LengthRule(10, max_prompt_length=3), (6, 4), (3, 4)),
        (LengthRule(10, max_prompt_length=3), (6, 9), (3, 7)),
        # a cap above half: the prompt is cut to it, and then still gives way to half
        (LengthRule(10, max_prompt_length=8), (9, 4), (6, 4)),
        (LengthRule(10, max_prompt_length=8), (9, 9), (5, 5)),
        # without max_length only the cap counts
        (LengthRule(None), (10_000, 10_000), (10_000, 10_000)),
        (LengthRule(None, max_prompt_length=7), (10, 10_000), (7, 10_000)),
    ],
)
def test_fit_by_hand(rule: LengthRule, lengths: tuple[int, int], kept: tuple[int, int]) -> None:
    assert rule.fit(*lengths) == kept


rules = st.builds(
    lambda max_length, cap: LengthRule(max_length, cap if cap is None else 1 + cap % (max_length - 1)),
    st.integers(2, 60),
    st.none() | st.integers(0, 100),
)


@given(rules, st.integers(1, 100), st.integers(1, 100))
def test_fit_properties(rule: LengthRule, prompt: int, completion: int) -> None:
    kept_prompt, kept_completion = rule.fit(prompt, completion)
    assert rule.max_length is not None
    assert kept_prompt + kept_completion <= rule.max_length
    assert 1 <= kept_prompt <= prompt
    assert 1 <= kept_completion <= completion
    cap = rule.max_prompt_length if rule.max_prompt_length is not None else prompt
    assert kept_prompt <= cap
    assert kept_prompt >= min(prompt, cap, rule.max_length // 2)
    # nothing is given up without need: either all of it is there, or the room is used up
    if (kept_prompt, kept_completion) != (min(prompt, cap), completion):
        assert kept_prompt + kept_completion == rule.max_length
    # the completion suffers only once the prompt is at half
    if kept_completion < completion:
        assert kept_prompt <= rule.max_length // 2


def test_room_obeys_on_overflow() -> None:
    assert LengthRule(10, on_overflow="cut").room(7, 4) == (6, 4)
    assert LengthRule(10, on_overflow="drop").room(7, 4) is None
    assert LengthRule(10, on_overflow="drop").room(6, 4) == (6, 4)
    assert LengthRule(10, on_overflow="error").room(6, 4) == (6, 4)
    with pytest.raises(
        RowFault, match="7 prompt tokens and 4 completion tokens are over max_length 10"
    ) as fault:
        LengthRule(10, on_overflow="error").room(7, 4)
    assert fault.value.reason == "too_long"
    with pytest.raises(RowFault, match="max_prompt_length 2"):
        LengthRule(10, 2, on_overflow="error").room(3, 1)


def test_cut_left() -> None:
    assert cut_left([1, 2, 3, 4], 4, keep_first=True) == [1, 2, 3, 4]
    assert cut_left([1, 2, 3, 4], 2, keep_first=False) == [3, 4]
    assert cut_left([1, 2, 3, 4], 2, keep_first=True) == [1, 4]
    assert cut_left([1, 2, 3, 4], 1, keep_first=True) == [1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 1}, "at least 2"),
        ({"max_length": 8, "max_prompt_length": 0}, "at least 1"),
        ({"max_length": 8, "max_prompt_length": 8}, "leaves no room"),
        ({"max_length": 8, "on_overflow": "crop"}, "did you mean 'drop'"),
    ],
)
def test_impossible_rules_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LengthRule(**settings)  # type: ignore[arg-type]


def test_report_counts_merges_and_prints() -> None:
    first, second = LengthReport(), LengthReport(dropped=2)
    first.count(prompt=(10, 6), chosen=(4, 4))
    second.count(prompt=(5, 5), chosen=(9, 4))
    second.equal_after_cut = 1
    first.merge(second)
    assert first.as_dict() == {
        "sides": {
            "prompt": {"rows": 2, "rows_cut": 1, "tokens": 15, "tokens_cut": 4},
            "chosen": {"rows": 2, "rows_cut": 1, "tokens": 13, "tokens_cut": 5},
        },
        "dropped": 2,
        "equal_after_cut": 1,
    }
    assert str(first).splitlines() == [
        "prompt: 1 of 2 rows cut (50.0 %), 4 of 15 tokens (26.7 %)",
        "chosen: 1 of 2 rows cut (50.0 %), 5 of 13 tokens (38.5 %)",
        "dropped for their length: 2 rows",
        "left out, both sides the same after the cut: 1 pairs",
    ]


@pytest.mark.parametrize("prompt", [10, 11, 5000])
def test_a_prompt_that_fills_max_length_alone_is_a_fault(prompt: int) -> None:
    with pytest.raises(
        RowFault, match=f"the prompt alone has {prompt} tokens, and max_length is 10"
    ) as error:
        LengthRule(10).room(prompt, 1)
    assert error.value.reason == "too_long"
    assert LengthRule(10, max_prompt_length=4).room(prompt, 1) == (4, 1)
    assert LengthRule(10, on_overflow="drop").room(prompt, 1) is None
    assert LengthRule(10).room(9, 3) == (7, 3)
