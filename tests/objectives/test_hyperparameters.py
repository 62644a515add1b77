"""A wrong hyperparameter is refused when the objective is built, by field and value."""

from __future__ import annotations

import dataclasses

import pytest

from holdfast.objectives import Dpo, FAlpha, Focal, HuberP, Ipo, Objective, SimPo, Slic, Slime, Threshold


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Slime(hard_margin="wide"), "slime: hard_margin must be a number, got 'wide'"),
        (
            lambda: Slime(stabilizer_weight="1e-3"),
            "stabilizer_weight must be a number, got .1e-3. .a number in quotes is text",
        ),
        (lambda: Slime(hard_margin=None), "slime: hard_margin must be a number, got None"),
        (lambda: Slime(hard_margin=True), "slime: hard_margin must be a number, got True"),
        (lambda: Slime(hard_margin=float("nan")), "slime: hard_margin must be finite, got nan"),
        (lambda: Slime(soft_margin=float("inf")), "slime: soft_margin must be finite, got inf"),
        (lambda: Slime(exponent=0.5), "slime: exponent must be >= 1, got 0.5"),
        (lambda: Slime(anchor_weight=-0.1), "slime: anchor_weight must be >= 0, got -0.1"),
        (lambda: Slime(sharpness=0), "slime: sharpness must be > 0, got 0.0"),
        (lambda: Slime(use_hard_margin=1), "slime: use_hard_margin must be true or false, got 1"),
        (lambda: Slime(stabilizer_reduction="batch"), "must be token or sequence, got 'batch'"),
        (lambda: Slime(anchor_weight=0, stabilizer_weight=0, margin_weight=0), "every term is switched off"),
        (
            lambda: Slime(anchor_weight=0, stabilizer_weight=0, use_hard_margin=False, use_soft_margin=False),
            "every term is switched off",
        ),
        (lambda: Dpo(beta=0), "dpo: beta must be > 0, got 0.0"),
        (lambda: Dpo(label_smoothing=0.5), "dpo: label_smoothing must be < 0.5, got 0.5"),
        (lambda: Dpo(variant="hinge"), "dpo: variant must be sigmoid or robust, got 'hinge'"),
        (lambda: Ipo(beta=-1), "ipo: beta must be > 0, got -1.0"),
        (lambda: Slic(nll_reduction=1), "slic: nll_reduction must be mean or sum, got 1"),
        (lambda: SimPo(gamma=0.5, gamma_beta_ratio=0.5), "simpo: give one of the two, got gamma=0.5"),
        (lambda: FAlpha(alpha=-1), "f_alpha: alpha must be >= 0, got -1.0"),
        (lambda: Focal(gamma=-1), "focal: gamma must be >= 0, got -1.0"),
        (lambda: HuberP(delta=0), "huber_p: delta must be > 0, got 0.0"),
        (lambda: Threshold(low=1.5), "threshold: low must be <= 1, got 1.5"),
        (lambda: Threshold(low=0.6, high=0.4), "low must be <= high, got low=0.6 and high=0.4"),
        (lambda: Threshold(base="dpo"), "base must be a token objective, got 'dpo', which works on pairs"),
        (lambda: Threshold(base=3), "base must be a token objective, its name or its spec, got 3"),
        (lambda: Threshold(base="nl"), "unknown objective 'nl'.*did you mean 'nll'"),
    ],
)
def test_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_an_integer_is_a_number() -> None:
    assert Slime(hard_margin=2) == Slime(hard_margin=2.0)
    assert isinstance(Slime(hard_margin=2).hard_margin, float)


def test_a_built_objective_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Slime().hard_margin = 2.0  # type: ignore[misc]


def test_symbols_come_from_the_fields_of_the_class_and_its_bases() -> None:
    assert Objective.symbols == {}
    assert list(SimPo.symbols) == ["beta", "gamma", "gamma_beta_ratio"]
    assert "m_h" in Slime.symbols["hard_margin"]
