"""Style: what is counted, and a win rate with length and markdown accounted for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from holdfast.evaluation.judged.style_control import controlled_win_rate, style_features, style_of

TEXT = "# one\n## two\n1. a\n2. b\n- c\n* d\n**bold** and __too__\n```\n# code\n- code\n```\n#no"


def test_marks_outside_code_are_counted() -> None:
    style = style_of(TEXT)
    assert style.as_record() == {
        "header_count": {"h1": 1, "h2": 1, "h3": 0, "h4": 0, "h5": 0, "h6": 0},
        "list_count": {"ordered": 2, "unordered": 2},
        "bold_count": {"**": 1, "__": 1},
    }
    assert style.totals() == [2, 4, 2]
    assert style_of("").totals() == [0, 0, 0]


def test_features_by_hand() -> None:
    # lengths 30 and 10: 0.5; 10 and 30: -0.5. Two rows, z-scored: 1/sqrt(2) and -1/sqrt(2).
    found = style_features([[30, 0, 0, 3], [10, 0, 0, 0]], [[10, 0, 0, 0], [30, 0, 0, 3]])
    assert found[:, 0] == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5)])
    assert found[:, 3] == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5)])
    assert (found[:, 1:3] == 0).all()  # the same everywhere
    assert (style_features([[0, 0, 0, 0]] * 2, [[0, 0, 0, 0]] * 2) == 0).all()


def test_a_judge_of_length_alone_leaves_an_even_strength() -> None:
    generator = np.random.default_rng(0)
    lengths, base = generator.integers(50, 400, 2000), generator.integers(50, 300, 2000)
    features = style_features([[n, 0, 0, 0] for n in lengths], [[n, 0, 0, 0] for n in base])
    relative = (lengths - base) / (lengths + base)
    points = (generator.random(2000) < 1 / (1 + np.exp(-4 * (relative - relative.mean())))).astype(float)
    found = controlled_win_rate(points.tolist(), features, rounds=20)
    assert found.low < 0.5 < found.high
    assert found.coefficients[0] == pytest.approx(4 * relative.std(ddof=1), rel=0.15)
    assert found == controlled_win_rate(points.tolist(), features, rounds=20)


def test_as_an_unregularised_logistic_regression() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = np.random.default_rng(1)
    features = generator.normal(size=(300, 4))
    points = (generator.random(300) < 1 / (1 + np.exp(-(0.4 + features @ [1, -0.5, 0, 0.2])))).astype(float)
    found = controlled_win_rate(points.tolist(), features, rounds=1)
    fit = linear_model.LogisticRegression(C=np.inf, tol=1e-10).fit(features, points)
    assert found.coefficients == pytest.approx(tuple(fit.coef_[0]), abs=1e-3)


def test_rows_that_are_all_won_stay_finite() -> None:
    found = controlled_win_rate([1.0] * 30, np.zeros((30, 4)), rounds=3)
    assert found.value == pytest.approx(1.0)
    assert found.coefficients == (0, 0, 0, 0)
