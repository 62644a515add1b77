"""Values out of YAML against types, and faults in words."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from holdfast.errors import ConfigError
from holdfast.experiments.values import check_value, members, mistaken_for_number, shown


def test_members() -> None:
    assert members(int) == (int,)
    assert members(int | None) == (int, type(None))
    assert members(Annotated[float | str, Field(gt=0)]) == (float, str)


def test_truth_values_are_no_numbers() -> None:
    for annotation in (int, float, int | None, float | None, Annotated[int | None, Field(ge=1)]):
        assert mistaken_for_number(True, annotation)
        assert not mistaken_for_number(1, annotation)
    for annotation in (bool, bool | None, str | bool, Any, dict[str, int]):
        assert not mistaken_for_number(False, annotation)


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        (True, int, "x: expected a number, got true"),
        (0, Annotated[int | None, Field(ge=1)], "x: must be greater than or equal to 1, got 0"),
        (float("inf"), float | None, "x: must be a finite number, got inf"),
        ("b", Literal["cut", "drop"], "x: no such value as 'b' (known: cut, drop)"),
        (False, Literal["cut", "drop"], "x: must be 'cut' or 'drop', got false"),
        ([1], str, "x: expected text, got [1]"),
        (None, str, "x: expected text, got null"),
        ("maybe", bool, "x: must be a valid boolean, unable to interpret input, got 'maybe'"),
    ],
)
def test_words(value: Any, annotation: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_value(value, annotation, "x")
    assert str(raised.value) == message


def test_values_that_pass() -> None:
    assert check_value("1e-4", float, "x") == 1e-4
    assert check_value("yes", bool, "x") is True


def test_shown() -> None:
    values = [None, True, 1.5, "a", datetime.date(2024, 1, 2), [1]]
    assert [shown(value) for value in values] == ["null", "true", "1.5", "'a'", "2024-01-02", "[1]"]


def test_of_a_url_only_the_scheme_is_shown() -> None:
    assert shown("https://user:KEY@host/?token=KEY") == "'https://...'"
    assert shown(["s3://KEY@x", {"a": "b://KEY"}]) == "['s3://...', {'a': 'b://...'}]"
