"""Regime -> objective: which, why, what may fool it, and the YAML to paste."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from holdfast.capability.intervals import Estimate
from holdfast.capability.pilot_report import PilotReport
from holdfast.capability.regime import Regime
from holdfast.capability.summary import TokenSummary

NLL: Mapping[str, Any] = {"name": "nll"}
SMALL_ALPHA: Mapping[str, Any] = {"name": "f_alpha", "alpha": 0.3}
LEANING: Mapping[str, Any] = {"name": "p"}
# By regime: the objective, and why. Results named are the paper's (arXiv 2510.00526).
OBJECTIVES: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "weak": (
        NLL,
        "The model does not know these answers: its low probabilities are what there is to learn, and NLL pulls "
        "hardest there. At this end of the paper's continuum NLL reaches 35.20 exact match and 1 − p reaches 0.00 "
        "(figlet fonts, Qwen2.5-7B).",
    ),
    "between weak and intermediate": (
        NLL,
        "The interval reaches into the weak regime, where an objective that spares low probabilities may learn "
        "nothing at all.",
    ),
    "intermediate": (
        SMALL_ALPHA,
        "The paper finds no clear winner in this regime. A small alpha keeps much of NLL's pull on unlikely tokens and "
        "lets go of the hopeless ones; `--pilot` settles it.",
    ),
    "between intermediate and strong": (
        SMALL_ALPHA,
        "The interval reaches from the regime without a clear winner into the strong one. A small alpha stands between "
        "NLL and 1 − p; `--pilot` settles it, or more rows.",
    ),
    "strong": (
        LEANING,
        "The model knows most of these answers: what it finds unlikely is more often noise than news, and 1 − p leaves "
        "such tokens alone. At this end of the paper's continuum 1 − p averages 32.75, NLL on tokens with p >= 0.2 "
        "32.04, and NLL 17.00 (maths, Qwen2.5-Math-1.5B).",
    ),
    "undecided": (
        NLL,
        "These rows decide nothing: no token of theirs carries information, or too few rows do. NLL is what is used "
        "when nothing is known.",
    ),
}

SHORT = 16  # informative tokens of an answer, on average: up to here it is short
NOISY = 0.05  # of the informative tokens ruled out, from which a model that knows the rest meets noise
KNOWN = 0.25  # chance of a whole answer, from which some rows are simply known
FEW_ROWS = 50


@dataclass(frozen=True)
class Recommendation:
    """What to train with.

    Attributes:
        objective: as in YAML.
        reason, caveats: sentences.
        yaml: a run's file with this objective; loads as it stands where model and rows have names.
    """

    objective: dict[str, Any]
    reason: str
    caveats: tuple[str, ...]
    yaml: str


def recommend(
    regime: Regime,
    every: TokenSummary,
    informative: TokenSummary | None,
    whole_answer: Estimate,
    run: Mapping[str, Any],
) -> Recommendation:
    """The objective for a regime.

    Args:
        whole_answer: the chance that a sampled answer is the row's.
        run: a run's file, to which the objective is added (see `RowSettings.run`).
    """
    spec, reason = OBJECTIVES[regime.name]
    with_objective = dict(run) | {"sft": {"objective": dict(spec), **run["sft"]}}
    return Recommendation(
        objective=dict(spec),
        reason=reason,
        caveats=_caveats(regime, every, informative, whole_answer),
        yaml=_dumped(with_objective),
    )


def _caveats(
    regime: Regime, every: TokenSummary, informative: TokenSummary | None, whole_answer: Estimate
) -> tuple[str, ...]:
    """What may make the recommendation wrong: first what shows in the figures, then what never does."""
    found = []
    judged = informative or every
    excluded = judged.share_ruled_out.value or 0.0
    length = judged.tokens / judged.rows
    ruled_out = f"{excluded:.1%} of the informative tokens have p < 0.01"
    if judged.rows < FEW_ROWS:
        found.append(
            f"Only {judged.rows} rows were probed: intervals are wide, and a fixed answer format is hardly recognised "
            "in so few."
        )
    if regime.name == "strong" and excluded >= NOISY:
        found.append(
            f"{ruled_out}, although the model knows most of the rest: read the hardest rows. If they are wrong, that "
            "speaks for a prior-leaning objective; if they are news the model should learn, for NLL."
        )
    if regime.name == "strong" and excluded < NOISY and length <= SHORT:
        found.append(
            f"The answers are short ({length:.1f} informative tokens a row) and hardly any is ruled out. On short "
            "clean labels NLL is as good or better even for strong models: 95.0 against 93.4 for 1 − p in the paper "
            "(OpenBookQA)."
        )
    if "intermediate" in regime.name and excluded >= NOISY and (whole_answer.value or 0.0) >= KNOWN:
        found.append(
            f"Rows fall in two: {ruled_out}, yet a sampled answer is the row's, word for word, with a chance of "
            f"{whole_answer.value:.2f}. Either the labels are noisy, and the model is stronger than it looks, or rows "
            "of known and unknown tasks are mixed: read the hardest rows, compare the sources."
        )
    if regime.name != "strong":
        found.append(
            "Noise favours prior-leaning objectives whatever the regime looks like: with noisy labels 1 − p kept 91.6 "
            "where NLL fell to 27.0 in the paper (OpenBookQA), and wrong labels make a strong model look weaker."
        )
    found.append(
        "The proxy believes the model's own confidence: a model that is sure and wrong looks weak whatever it could "
        "learn, one that has seen these very rows looks strong."
    )
    found.append(
        "Greedy decoding and sampling may disagree: an objective that sharpens the distribution gains at temperature 1 "
        "by that alone. `--pilot N` measures both."
    )
    return tuple(found)


def settle(recommendation: Recommendation, pilot: PilotReport) -> Recommendation:
    """The recommendation after a pilot, which overturns it only where it is shown to be worse.

    Answers decide (the mean of greedy decoding and temperature 1). Likelihood never does: it is what NLL trains, so NLL
    is ahead by it wherever enough was trained, noise and all.
    """
    winner = pilot.winner("answers")
    if winner is None:
        sentence = (
            f"The pilot of {pilot.steps} steps leaves it at that: no candidate gave a single answer word for word, and "
            "likelihood, which NLL trains, does not decide."
        )
        return replace(recommendation, reason=f"{recommendation.reason} {sentence}")
    own = next((arm.name for arm in pilot.arms if arm.objective == recommendation.objective), None)
    if own == winner.best or own in winner.tied:
        rest = f" (not shown to be worse: {', '.join(winner.tied)})" if winner.tied else ""
        sentence = f"The pilot of {pilot.steps} steps agrees: by its answers the best is {winner.best}{rest}."
        return replace(recommendation, reason=f"{recommendation.reason} {sentence}")
    best = pilot.arm(winner.best)
    assert best.objective is not None  # a winner is a candidate
    behind = f", and {own} is shown to be worse" if own is not None else ""
    rest = f" Not shown to be worse: {', '.join(winner.tied)}." if winner.tied else ""
    run = yaml.safe_load(recommendation.yaml)
    run["sft"]["objective"] = dict(best.objective)
    return replace(
        recommendation,
        objective=dict(best.objective),
        reason=f"The pilot of {pilot.steps} steps decides: by its answers {winner.best} is best{behind}.{rest} The "
        "probe alone would have said otherwise; one seed and a short training are no proof either.",
        yaml=_dumped(run),
    )


def _dumped(run: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(run), sort_keys=False, allow_unicode=True)
