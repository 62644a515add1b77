"""Every objective can say what it is."""

from __future__ import annotations

import dataclasses

import pytest

from holdfast.objectives import explain, get_objective, list_objectives


@pytest.mark.parametrize("name", list_objectives())
def test_everything_has_something_to_say(name: str) -> None:
    told, built = explain(name), get_objective(name)
    assert (told.name, told.kind, told.paper, told.formula) == (name, built.kind, built.paper, built.formula)
    assert told.title
    assert "\n" not in told.title
    assert all(symbol.meaning for symbol in told.symbols)
    assert [symbol.field for symbol in told.symbols] == [field.name for field in dataclasses.fields(built)]
    assert ("a frozen reference" in told.needs) == built.needs_reference
    assert told.presets == built.presets


@pytest.mark.parametrize("name", list_objectives())
def test_the_shown_defaults_are_the_real_ones(name: str) -> None:
    defaults = {symbol.field: symbol.default for symbol in explain(name).symbols}
    assert get_objective(name, **defaults) == get_objective(name)


def test_slime() -> None:
    told = explain("slime")
    assert "2602.02383" in told.paper
    assert told.needs == "preference pairs; no reference model"
    assert {s.field: s.default for s in told.symbols}["stabilizer_weight"] == 0.1
    assert set(told.presets) == {"paper", "trl-slime-train", "trl-slime-config"}
    assert any("log-prob != 0" in note for note in told.notes)


def test_an_unknown_name_is_met_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'simpo'"):
        explain("simp")
