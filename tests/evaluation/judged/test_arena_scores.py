"""Arena-Hard's two scores: by hand, against the original's own steps, and on one-sided games."""

from __future__ import annotations

import math

import numpy as np
import pytest

from holdfast.evaluation.judged.arena_scores import (
    clustered,
    current_score,
    model_points,
    original_scores,
    plain_outcomes,
)
from holdfast.evaluation.judged.verdict_parsers import LABELS

Games = list[tuple[str | None, str | None]]


def games(questions: int, seed: int = 0) -> Games:
    """Labels at random; a few are null."""
    drawn = np.random.default_rng(seed).choice(
        [*LABELS, ""], size=(questions, 2), p=[0.1, 0.3, 0.2, 0.2, 0.1, 0.1]
    )
    return [(str(first) or None, str(second) or None) for first, second in drawn]


@pytest.mark.parametrize(
    ("labels", "points", "outcomes"),
    [
        (("A>B", "A>B"), [1, 0], [0, 1]),  # each order's first answer won
        (("B>>A", "A>B"), [1, 1, 1, 1], [1, 1]),
        (("A=B", "B>>A"), [0, 0, 0, 0.5], [0.5, 0]),
        (("A<B", "B=A"), [0.5, 1], [1, 0.5]),  # mirrored spellings
        ((None, "A>B"), None, None),
        (("A>B", "AB"), None, None),
    ],
)
def test_points_of_two_games(
    labels: tuple[str | None, str | None], points: list[float] | None, outcomes: list[float] | None
) -> None:
    assert model_points(labels) == points
    assert plain_outcomes(labels) == outcomes


def test_the_originals_win_rate_by_hand() -> None:
    # The model's rows: 0, then 1 1 1; then 0.5 and 1: 4.5 of 6.
    found = original_scores({"m": [("A>B", "A>>B"), ("A=B", "A>B")]})["m"]
    assert found is not None
    assert (found.value, found.rows, found.level) == (75.0, 6, 0.95)
    assert found.printed.startswith("score: 75.0 | 95% CI: (-")
    assert found.low <= found.value <= found.high


def test_the_original_leaves_out_a_game_and_the_current_tool_a_question() -> None:
    labels: Games = [("B>A", None), ("B>A", "A>B")]
    original, current = original_scores({"m": labels})["m"], current_score(labels)
    assert original is not None
    assert current is not None
    assert (original.rows, current.rows) == (3, 2)
    # mirrored spellings count in the current tool alone
    assert original_scores({"m": [("A<B", "B<A")]})["m"] is None
    assert current_score([("A<B", "B<A")]) is not None
    assert current_score([(None, None)]) is None


def test_only_wins_are_a_hundred_percent() -> None:
    found = original_scores({"m": [("B>>A", "A>>B")] * 4})["m"]
    assert found is not None
    assert (found.value, found.low, found.high) == (100.0, 100.0, 100.0)
    mixed = original_scores({"m": [("B>A", "A>B")] * 3 + [("A>B", "A>B")]})["m"]
    assert mixed is not None
    assert math.isfinite(mixed.low)
    assert mixed.high == 100.0


def test_bounds_depend_on_the_models_drawn_together() -> None:
    one, other = games(40), games(40, 1)
    alone = original_scores({"m": one})["m"]
    together = original_scores({"m": one, "n": other})
    assert alone is not None
    assert together["m"] is not None
    assert alone.value == together["m"].value
    assert (alone.low, alone.high) != (together["m"].low, together["m"].high)


def test_the_current_score_is_the_mean_of_seeded_means() -> None:
    labels = games(60)
    found = current_score(labels)
    rows = [points for pair in labels for points in model_points(pair) or []]
    assert found is not None
    assert found == current_score(labels)
    assert found.value == pytest.approx(100 * np.mean(rows), abs=1.5)
    assert found.low < found.value < found.high
    assert found.level == 0.9


def test_questions_drawn_whole_give_a_wider_interval() -> None:
    labels: Games = [("A>>B", "B>>A"), ("B>>A", "A>>B")] * 30
    found, tool = clustered(labels), original_scores({"m": labels})["m"]
    assert found is not None
    assert found.interval is not None
    assert tool is not None
    assert found.value == 0.5
    assert found.clusters == 60
    assert 100 * (found.interval.high - found.interval.low) > 1.5 * (tool.high - tool.low)
    assert clustered([(None, "A>B")]) is None


def test_as_the_originals_own_steps() -> None:
    """Its battles, its doubled table and logistic regression, its seed, its percentiles and its rounding."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    pandas = pytest.importorskip("pandas")
    models = {"m": games(60, 3), "n": games(60, 4)}
    battles = []
    for name, labels in models.items():
        for pair in labels:
            for game, label in enumerate(pair):
                if label is None:
                    continue
                winner = "tie" if label == "A=B" else ("model_a" if label[0] == "AB"[game] else "model_b")
                battles += [{"model_a": "base", "model_b": name, "winner": winner}] * (
                    3 if ">>" in label else 1
                )
    table = pandas.DataFrame(battles)

    def elo(frame: object) -> dict[str, float]:
        frame = pandas.concat([frame, frame], ignore_index=True)
        names = pandas.concat([frame["model_a"], frame["model_b"]]).unique()
        index = {name: place for place, name in enumerate(names)}
        design = np.zeros((len(frame), len(names)))
        rows = np.arange(len(frame))
        design[rows, frame["model_a"].map(index)] = math.log(10)
        design[rows, frame["model_b"].map(index)] = -math.log(10)
        wins = (frame["winner"] == "model_a").to_numpy(float)
        tie = (frame["winner"] == "tie").to_numpy(copy=True)
        tie[len(tie) // 2 :] = False
        wins[tie] = 1.0
        fit = linear_model.LogisticRegression(fit_intercept=False, C=np.inf, tol=1e-8).fit(design, wins)
        scores = 400 * fit.coef_[0] + 1000
        scores += 1000 - scores[index["base"]]
        return {name: scores[place] for name, place in index.items()}

    whole = elo(table)
    np.random.seed(42)  # noqa: NPY002
    drawn = pandas.DataFrame([elo(table.sample(frac=1.0, replace=True)) for _ in range(100)])
    ours = original_scores(models)
    for name in models:
        bounds = (np.percentile(drawn[name], 2.5), np.percentile(drawn[name], 97.5))
        rate, low, high = (round(100 / (1 + 10 ** ((1000 - r) / 400)), 2) for r in (whole[name], *bounds))
        found = ours[name]
        assert found is not None
        assert (
            found.printed
            == f"score: {round(rate, 1)} | 95% CI: ({round(low - rate, 1)}, {round(high - rate, 1)})"
        )
        assert (found.value, found.low, found.high) == pytest.approx((rate, low, high), abs=0.011)
