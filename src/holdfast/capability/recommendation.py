"""Regime -> objective: which, why, what may fool it, and the YAML to paste."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from holdfast.capability.blind_guess import ROWS_NEEDED
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
        "These rows decide nothing: no token of theirs carries information, or they are too few to tell. NLL is what "
        "is used when nothing is known.",
    ),
}
KNOWN_IN_NEW_FORMAT = (
    "The model knows most of these answers, but not the format they stand in. 1 − p leaves unlikely tokens alone, and "
    "would not learn it; a small alpha still pulls on them, and spares the answers' own unlikely tokens."
)

SHORT = 16  # informative tokens of an answer, on average: up to here it is short
NOISY = 0.05  # of the informative tokens ruled out, from which a model that knows the rest meets noise
# Of the tokens given away, ruled out: 0.000 to 0.004 on tasks known, with wrong answers and unknown, in a known format;
# 0.49 with another key in the JSON. The lower bound is held against it: of free text a handful of tokens is given away.
NEW_FORMAT = 0.05
KNOWN = 0.25  # chance of a whole answer, from which some rows are simply known
FEW_ROWS = 50  # or prompts


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
    format_ruled_out: Estimate,
    whole_answer: Estimate,
    run: Mapping[str, Any],
    *,
    prompts: int,
) -> Recommendation:
    """The objective for a regime; a strong model that does not know the answers' format gets a small alpha.

    Args:
        format_ruled_out: of the tokens given away, the share with p below 0.01.
        whole_answer: the chance that a sampled answer is the row's.
        run: a run's file, to which the objective is added (see `RowSettings.run`).
        prompts: different ones among the rows.
    """
    spec, reason = OBJECTIVES[regime.name]
    found = _caveats(regime, every, informative, whole_answer, prompts)
    if regime.name == "strong" and (format_ruled_out.low or 0.0) >= NEW_FORMAT:
        spec, reason = SMALL_ALPHA, KNOWN_IN_NEW_FORMAT
        found = (
            f"The answers are known, their format is not (yet): {format_ruled_out.value:.1%} of the tokens that the "
            "other rows give away have p < 0.01, and where nine rows in ten agree that is no wrong label. Once the "
            "format is learnt, or asked for in the prompt, probe again.",
            *found,
        )
    return Recommendation(
        objective=dict(spec),
        reason=reason,
        caveats=found,
        yaml=_with_objective(run, spec),
    )


def _caveats(
    regime: Regime,
    every: TokenSummary,
    informative: TokenSummary | None,
    whole_answer: Estimate,
    prompts: int,
) -> tuple[str, ...]:
    """What may make the recommendation wrong: first what shows in the figures, then what never does."""
    found = []
    judged = informative or every
    excluded = judged.share_ruled_out.value or 0.0
    length = judged.tokens / judged.rows
    ruled_out = f"{excluded:.1%} of the informative tokens have p < 0.01"
    few = f"Only {_count(every.rows, 'row')} of {_count(prompts, 'different prompt')}"
    if prompts <= ROWS_NEEDED:
        found.append(
            f"{few}: too few to tell a fixed answer format from the answers, for which {ROWS_NEEDED + 1} different "
            "prompts are needed."
        )
    elif prompts < FEW_ROWS:
        found.append(
            f"{few}: a fixed answer format is hardly recognised in so few, and an interval from so few is a rough one."
        )
    if judged.rows < min(FEW_ROWS, every.rows):
        found.append(
            f"Of {_count(every.rows, 'row')} only {judged.rows} have a token that carries information: little can be "
            "read from so few."
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


def settle(recommendation: Recommendation, pilot: PilotReport, run: Mapping[str, Any]) -> Recommendation:
    """The recommendation after a pilot, which overturns it only where it is shown to be worse.

    Answers decide (the mean of greedy decoding and temperature 1). Likelihood never does: it is what NLL trains, so NLL
    is ahead by it wherever enough was trained, noise and all.

    Args:
        run: a run's file with the settings of the pilot, to which the objective is added.
    """
    recommendation = replace(recommendation, yaml=_with_objective(run, recommendation.objective))
    winner, steps = pilot.winner("answers"), _count(pilot.steps, "step")
    if winner is None:
        why = (
            "no candidate gave a single answer word for word"
            if pilot.asked_rows
            else f"most held-out answers have more than {pilot.longest_answer} tokens, too many to match word for word"
        )
        sentence = f"The pilot of {steps} leaves it at that: {why}, and likelihood, which NLL trains, does not decide."
        return replace(recommendation, reason=f"{recommendation.reason} {sentence}")
    own = next((arm.name for arm in pilot.arms if arm.objective == recommendation.objective), None)
    if own == winner.best or own in winner.tied:
        rest = f" (not shown to be worse: {', '.join(winner.tied)})" if winner.tied else ""
        word = "agrees" if own == winner.best else "does not contradict it"
        sentence = f"The pilot of {steps} {word}: by its answers the best is {winner.best}{rest}."
        return replace(recommendation, reason=f"{recommendation.reason} {sentence}")
    best = pilot.arm(winner.best)
    assert best.objective is not None  # a winner is a candidate
    behind = f", and {own} is shown to be worse" if own is not None else ""
    rest = f" Not shown to be worse: {', '.join(winner.tied)}." if winner.tied else ""
    return replace(
        recommendation,
        objective=dict(best.objective),
        reason=f"The pilot of {steps} decides: by its answers {winner.best} is best{behind}.{rest} The "
        "probe alone would have said otherwise; one seed and a short training are no proof either.",
        yaml=_with_objective(run, best.objective),
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _with_objective(run: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    """The run's file with this objective."""
    stage = {key: value for key, value in run["sft"].items() if key != "objective"}
    whole = dict(run) | {"sft": {"objective": dict(spec), **stage}}
    return yaml.safe_dump(whole, sort_keys=False, allow_unicode=True)
