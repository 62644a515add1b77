"""From a name or a mapping to an objective and back; each mistake names what was meant."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

import holdfast
from holdfast.objectives import (
    FAlpha,
    PairObjective,
    Slime,
    Threshold,
    TokenObjective,
    get_objective,
    list_objectives,
    objective_spec,
    resolve_objective,
)


def test_the_whole_list() -> None:
    pairs = ("cpo", "cpo_simpo", "dpo", "ipo", "orpo", "sft", "simpo", "slic", "slime")
    tokens = ("adaptive", "dft", "f_alpha", "focal", "huber_p", "log_one_minus_p", "nll", "p", "threshold")
    assert list_objectives("pair") == pairs
    assert list_objectives("token") == tokens
    assert list_objectives() == pairs + tokens
    with pytest.raises(ValueError, match="kind must be one of pair, token, got 'pairs'"):
        list_objectives("pairs")


@pytest.mark.parametrize("name", list_objectives())
def test_a_name_builds_its_own_class(name: str) -> None:
    built = get_objective(name)
    assert built.name == name
    assert isinstance(built, PairObjective if built.kind == "pair" else TokenObjective)
    assert name in list_objectives(built.kind)


def test_overrides_come_after_the_preset() -> None:
    built = get_objective("slime", preset="trl-slime-config", threshold=0.75)
    assert built == Slime(anchor_weight=0.8, stabilizer_weight=0.0005, threshold=0.75)


@pytest.mark.parametrize(
    "spec",
    [
        "slime",
        {"name": "slime"},
        {"name": "slime", "preset": "paper"},
        {"name": "slime", "hard_margin": 1.5},
        Slime(),
    ],
)
def test_every_form_of_a_spec(spec: object) -> None:
    assert resolve_objective(spec) == Slime()  # type: ignore[arg-type]


def test_an_instance_is_returned_as_it_is_and_a_mapping_is_left_alone() -> None:
    built = Slime()
    assert resolve_objective(built) is built
    spec: Mapping[str, object] = {"name": "slime", "preset": "paper", "hard_margin": 2}
    resolve_objective(spec)
    assert spec == {"name": "slime", "preset": "paper", "hard_margin": 2}


def test_a_nested_spec_is_written_out() -> None:
    assert objective_spec(Threshold(base=FAlpha(alpha=2), low=0.2)) == {
        "name": "threshold",
        "base": {"name": "f_alpha", "alpha": 2.0},
        "low": 0.2,
        "high": 1.0,
        "low_quantile": None,
        "high_quantile": None,
        "normalize": "kept",
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_objective("slim"), r"unknown objective 'slim' \(did you mean 'slime'\?\)"),
        (lambda: get_objective("xyzzy"), r"unknown objective 'xyzzy' \(known: adaptive, cpo, cpo_simpo"),
        (
            lambda: get_objective("slime", hard_margn=1),
            r"slime: unknown hyperparameter 'hard_margn' \(did you mean 'hard_margin'\?\)",
        ),
        (lambda: get_objective("nll", alpha=1), r"nll: unknown hyperparameter 'alpha' \(nll has no hyper"),
        (
            lambda: get_objective("slime", preset="papr"),
            r"slime: unknown preset 'papr' \(did you mean 'paper'\?\)",
        ),
        (lambda: get_objective("dpo", preset="paper"), r"unknown preset 'paper' \(dpo has no presets\)"),
        (lambda: get_objective("slime", hard_margin="abc"), "slime: hard_margin must be a number, got 'abc'"),
        (lambda: resolve_objective({"hard_margin": 1}), "an objective needs a name, one of cpo, "),
        (lambda: resolve_objective({"name": 3}), "an objective needs a name"),
        (lambda: resolve_objective({"name": "slime", "preset": 3}), "slime: preset must be a name, got 3"),
        (lambda: resolve_objective(["slime"]), "a name, a mapping with a name, or an instance"),
    ],
)
def test_mistakes_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_package_offers_the_same_functions() -> None:
    assert holdfast.get_objective is get_objective
    assert holdfast.list_objectives is list_objectives
