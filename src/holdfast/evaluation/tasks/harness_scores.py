"""What lm-evaluation-harness measured -> values by question, and the difference between two models on the same ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.evaluation.results import Score
from holdfast.evaluation.statistics import bootstrap_mean, paired_bootstrap

TOLERANCE = 1e-6  # between the harness's figure and the mean of its values
NO_MEAN = "no mean of values by question, so there is no interval"
OTHER_QUESTIONS = "the two were not asked the same questions, so there is no interval"


@dataclass(frozen=True)
class Metric:
    """One metric of one task (or group of tasks) for one model.

    Attributes:
        task, name: such as `arc_easy` and `acc`; a filter's name follows the metric's, `exact_match,strict-match`.
        value: the harness's own figure.
        by_question: values that `value` is the mean of, by the question's number; empty where it is no such mean.
    """

    task: str
    name: str
    value: float
    by_question: Mapping[str, float]

    @property
    def label(self) -> str:
        """Names it in results."""
        return f"{self.task} {self.name}"


def metrics_of(output: Mapping[str, Any]) -> list[Metric]:
    """Every metric in the output of `simple_evaluate`, tasks and metrics in its order; standard errors left out."""
    tables = dict(output["results"]) | dict(output.get("groups") or {})
    found = []
    for task, table in tables.items():
        for key, value in table.items():
            name, _, kind = key.partition(",")
            if name.endswith("_stderr") or not _is_number(value) or not kind:
                continue
            values = _by_question((output.get("samples") or {}).get(task, ()), name, kind)
            mean = math.fsum(values.values()) / len(values) if values else math.nan
            found.append(
                Metric(
                    task,
                    name if kind == "none" else key,
                    float(value),
                    values if math.isclose(mean, value, rel_tol=TOLERANCE, abs_tol=TOLERANCE) else {},
                )
            )
    return found


def score_of(metric: Metric, *, seed: int = 0) -> Score:
    """A metric with its interval by question, where there are values to draw."""
    if not metric.by_question:
        return Score(metric.label, metric.value, note=NO_MEAN)
    return Score.of(metric.label, bootstrap_mean(list(metric.by_question.values()), seed=seed))


def differences(metrics: Sequence[Metric], base: Sequence[Metric], *, seed: int = 0) -> list[Score]:
    """Of every metric that both have: the model's minus the base's, with a paired interval by question."""
    before = {metric.label: metric for metric in base}
    found = []
    for metric in metrics:
        other = before.get(metric.label)
        if other is None:
            continue
        label = f"{metric.label}, difference to the base"
        if not metric.by_question or not other.by_question:
            found.append(Score(label, metric.value - other.value, note=NO_MEAN))
        elif metric.by_question.keys() != other.by_question.keys():
            found.append(Score(label, metric.value - other.value, note=OTHER_QUESTIONS))
        else:
            questions = list(metric.by_question)
            estimate = paired_bootstrap(
                [other.by_question[question] for question in questions],
                [metric.by_question[question] for question in questions],
                seed=seed,
            )
            found.append(Score.of(label, estimate))
    return found


def _by_question(samples: Sequence[Mapping[str, Any]], name: str, kind: str) -> dict[str, float]:
    """The metric's value of each question, where every one of them has a number; else nothing."""
    found = {}
    for sample in samples:
        if sample.get("filter", "none") != kind:
            continue
        value = sample.get(name)
        if value is None or not _is_number(value):
            return {}
        found[str(sample["doc_id"])] = float(value)
    return found


def _is_number(value: Any) -> bool:
    """Numbers of numpy too, which are no `int`; and truth values, which metrics by question often are."""
    try:
        return not isinstance(value, str | bytes) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
