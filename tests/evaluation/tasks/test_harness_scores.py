"""Figures of lm-evaluation-harness by question, and the difference between two models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from holdfast.evaluation.tasks.harness_scores import (
    NO_MEAN,
    OTHER_QUESTIONS,
    differences,
    metrics_of,
    score_of,
)


def output(right: dict[int, bool], *, perplexity: float = 7.0) -> dict[str, Any]:
    """What `simple_evaluate` returns, in small: two metrics and a filter's."""
    accuracy = sum(right.values()) / len(right)
    samples = [
        {"doc_id": number, "filter": name, "acc": np.float64(value), "em": value, "word_perplexity": (1.0, 2)}
        for number, value in right.items()
        for name in ("none", "strict-match")
    ]
    return {
        "results": {
            "letters": {
                "alias": "letters",
                "acc,none": accuracy,
                "acc_stderr,none": "N/A",
                "em,strict-match": accuracy,
                "em_stderr,strict-match": 0.1,
                "word_perplexity,none": perplexity,
            }
        },
        "groups": {"all": {"acc,none": 0.25, "alias": "all"}},
        "samples": {"letters": samples},
    }


BASE = output({0: True, 1: True, 2: False, 3: False})
MODEL = output({0: True, 1: False, 2: False, 3: False}, perplexity=6.5)


def test_metrics_and_what_they_are_the_mean_of():
    found = {metric.label: metric for metric in metrics_of(BASE)}
    assert list(found) == ["letters acc", "letters em,strict-match", "letters word_perplexity", "all acc"]
    assert found["letters acc"].by_question == {"0": 1.0, "1": 1.0, "2": 0.0, "3": 0.0}
    assert found["letters em,strict-match"].value == 0.5
    assert found["letters word_perplexity"].by_question == {}
    assert found["all acc"].by_question == {}


def test_a_figure_that_is_not_the_mean_of_its_values_has_no_interval():
    other = output({0: True, 1: False})
    other["results"]["letters"]["acc,none"] = 0.75
    assert score_of(metrics_of(other)[0]).note == NO_MEAN


def test_differences_by_hand():
    scores = {score.name: score for score in differences(metrics_of(MODEL), metrics_of(BASE))}
    accuracy = scores["letters acc, difference to the base"]
    # questions changed by 0, -1, 0 and 0
    assert accuracy.value == -0.25
    assert (accuracy.n, accuracy.clusters) == (4, 4)
    assert accuracy.interval.low == pytest.approx(-0.75)
    assert accuracy.interval.high == 0.0
    perplexity = scores["letters word_perplexity, difference to the base"]
    assert (perplexity.value, perplexity.interval, perplexity.note) == (-0.5, None, NO_MEAN)


def test_the_same_model_twice_differs_by_nothing():
    same = differences(metrics_of(BASE), metrics_of(BASE))
    assert {score.value for score in same} == {0.0}
    assert (same[0].interval.low, same[0].interval.high) == (0.0, 0.0)


def test_other_questions_are_no_pairs():
    other = output({0: True, 1: True, 5: False, 6: False})
    found = differences(metrics_of(MODEL), metrics_of(other))[0]
    assert (found.value, found.interval, found.note) == (-0.25, None, OTHER_QUESTIONS)


def test_a_metric_that_one_lacks_has_no_difference():
    assert differences(metrics_of(MODEL), []) == []
