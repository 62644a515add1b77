"""What `holdfast probe` found, in words: the terminal and the page say the same.

A report is `CapabilityReport.to_dict()`, or the JSON object in a `probe.json`, made `harmless`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from holdfast.errors import DataError
from holdfast.reports.visible import visible

Report = Mapping[str, Any]
Estimate = Mapping[str, float | None]

KEYS = (
    *(
        "probed",
        "every",
        "informative",
        "format_ruled_out",
        "guess",
        "capability",
        "whole_answer",
        "by_index",
        "by_part",
    ),
    *("by_source", "hardest", "regime", "recommendation", "pilot"),
)
NONE = "–"
START = "start"  # a pilot's model before any training
SHOWN_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
SHOWN_BINS = 20  # of the histogram's 100
CRITERIA = {
    "likelihood": "likelihood",
    "greedy": "greedy exact",
    "sampled": "exact at temperature 1",
    "answers": "mean of the two",
}


class Line(NamedTuple):
    """One quantity, of all target tokens and of those that carry information; texts, ready to print."""

    label: str
    every: str
    informative: str


class Place(NamedTuple):
    """One group of tokens; texts, ready to print."""

    name: str
    tokens: str
    mean: str
    informative_tokens: str
    informative_mean: str


class Trial(NamedTuple):
    """One arm of a pilot; texts, ready to print, by criterion."""

    name: str
    scores: tuple[str, ...]
    over_nll: tuple[str, ...]


def harmless(report: Report, where: str = "probe") -> dict[str, Any]:
    """The report with every text shown as a terminal or a page can be trusted with.

    Raises:
        DataError: it is no report of a probe; names the key that is missing.
    """
    missing = [key for key in KEYS if key not in report]
    if missing:
        raise DataError(f"{where}: no report of a probe: '{missing[0]}' is missing")
    found: dict[str, Any] = _visible(report)
    return found


def verdict(report: Report) -> str:
    """The regime in one sentence."""
    regime = report["regime"]
    bounds = f"weak below {regime['weak_below']:.2f}, strong from {regime['strong_from']:.2f}"
    if report["capability"]["value"] is None:
        return f"undecided: the other rows' answers give away every target token ({bounds})"
    return f"{regime['name']}: capability {interval(report['capability'])} ({bounds})"


def facts(report: Report) -> str:
    """What was probed, and how."""
    probed = report["probed"]
    parts = [
        f"{probed['sampled']:,} of {count(probed['rows'], 'row')} (seed {probed['seed']})",
        *([count(probed["prompts"], "prompt")] if probed["prompts"] < probed["sampled"] else []),
        count(report["every"]["tokens"], "target token"),
        f"weights in {probed['dtype']}",
        f"at most {probed['max_length']:,} tokens a row",
    ]
    if probed["cut"]:
        parts.append(f"{count(probed['cut'], 'answer')} cut")
    if probed["refused"]:
        parts.append(f"{count(probed['refused'], 'bad row')} left out")
    return ", ".join(parts)


def explanation() -> list[str]:
    """What the figures are."""
    return [
        "A token carries information where the other rows' answers, read without any prompt, do not give it away: a "
        "fixed format drowns the mean over all tokens.",
        "Capability is (p − q)/(1 − q), with p the model's mean probability of those tokens and q that of a guess from "
        "the other rows' answers: 0 is guessing, 1 is knowing. Intervals are 95 %, rows of one prompt drawn together.",
        "Given away, p < 0.01: of the other tokens. Nine rows in ten agree on those, so what the model rules out there "
        "is a format it does not know, and no wrong label.",
    ]


def lines(report: Report) -> list[Line]:
    """The figures, all tokens beside those that carry information."""
    every, informative = report["every"], report["informative"]

    def line(label: str, show: Any) -> Line:
        return Line(label, show(every), NONE if informative is None else show(informative))

    found = [
        line("tokens", lambda own: f"{own['tokens']:,}"),
        line("mean p", lambda own: interval(own["mean_probability"])),
        line("mean p, rows alike", lambda own: interval(own["row_mean_probability"])),
        line("share p > 0.55", lambda own: interval(own["share_confident"])),
        line("share p < 0.01", lambda own: interval(own["share_ruled_out"])),
        line("log p, nats/token", lambda own: interval(own["mean_logp"])),
    ]
    found += [
        line(f"p at {percent} %", lambda own, percent=percent: number(own["percentiles"][percent]))
        for percent in SHOWN_PERCENTILES
    ]
    found.append(Line("given away, p < 0.01", interval(report["format_ruled_out"]), NONE))
    found.append(Line("mean p, guessed", NONE, interval(report["guess"])))
    found.append(Line("whole answer sampled", interval(report["whole_answer"]), NONE))
    return found


def histogram(summary: Mapping[str, Any], bins: int = SHOWN_BINS) -> list[int]:
    """The histogram of p in fewer bins of equal width, a divisor of the 100."""
    counts = summary["histogram"]
    width = len(counts) // bins
    return [sum(counts[start : start + width]) for start in range(0, len(counts), width)]


def places(groups: Sequence[Mapping[str, Any]]) -> list[Place]:
    """Groups of tokens as rows of a table."""
    return [
        Place(
            group["name"],
            f"{group['tokens']:,}",
            interval(group["mean_probability"]),
            f"{group['informative_tokens']:,}",
            interval(group["informative_mean_probability"]),
        )
        for group in groups
    ]


def hardest(report: Report) -> list[str]:
    """The rows of least probability, a sentence each."""
    return [
        f"{row['where']}: mean p {number(row['mean_probability'])} over {count(row['tokens'], 'informative token')}"
        for row in report["hardest"]
    ]


def objective(report: Report) -> str:
    """The recommended objective, as on a command line."""
    spec = report["recommendation"]["objective"]
    settings = ", ".join(f"{key} {value}" for key, value in spec.items() if key != "name")
    return f"{spec['name']}{f' ({settings})' if settings else ''}"


def trials(report: Report) -> list[Trial]:
    """The arms of the pilot; empty without one."""
    return [
        Trial(
            arm["name"],
            tuple(interval(arm["scores"][criterion]) for criterion in CRITERIA),
            tuple(
                interval(arm["over_nll"][criterion], signed=True) if arm["over_nll"] else NONE
                for criterion in CRITERIA
            ),
        )
        for arm in (report["pilot"] or {"arms": []})["arms"]
    ]


def pilot_facts(report: Report) -> str:
    """How the pilot was run."""
    pilot = report["pilot"]
    settings = ", ".join(f"{key} {json.dumps(value)}" for key, value in pilot["settings"].items())
    return (
        f"{count(pilot['steps'], 'step')} a candidate on {count(pilot['train_rows'], 'row')}, judged on "
        f"{pilot['held_out_rows']:,} others, {_asked(pilot)}; seed {pilot['seed']}; {settings}. "
        "Intervals cover the choice of held-out rows, not that of the seed."
    )


def _asked(pilot: Mapping[str, Any]) -> str:
    """Which held-out prompts were answered."""
    asked = pilot["asked_rows"]
    if not asked:
        return "no answers generated"
    some = (
        "each" if asked == pilot["held_out_rows"] else f"for each of the {asked:,} with short enough answers"
    )
    return f"{count(pilot['samples'], 'sample')} {some} at temperature 1"


def winners(report: Report) -> list[str]:
    """Who wins by which criterion, and whether that is more than chance."""
    found = []
    judged = {winner["criterion"]: winner for winner in report["pilot"]["winners"]}
    for criterion, label in CRITERIA.items():
        if criterion not in judged:
            if report["pilot"]["asked_rows"]:
                found.append(f"{label}: no candidate gave a single answer word for word")
            continue
        winner = judged[criterion]
        tied = ", ".join(winner["tied"])
        found.append(
            f"{label}: {winner['best']}"
            + (
                f", not shown to be better than {tied}"
                if tied
                else ", better than every other (no interval holds 0)"
            )
        )
    if not report["pilot"]["asked_rows"]:
        found.append(
            "answers are not compared: most held-out ones have more than "
            f"{report['pilot']['longest_answer']} tokens, too many to match word for word; likelihood alone is compared"
        )
    start = next(arm for arm in report["pilot"]["arms"] if arm["name"] == START)
    behind = start["behind_best"]["answers"]
    if "answers" in judged and behind["high"] is not None and behind["high"] < 0:
        found.append(
            f"the start answers better than every candidate (the best has {interval(behind, signed=True)}): as it is "
            "set up, this training does harm; lower the learning rate, or look at the rows"
        )
    return found


def interval(estimate: Estimate, signed: bool = False) -> str:
    """A value with its bounds: `0.812 [0.801, 0.823]`."""
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    if value is None:
        return NONE
    if low is None or high is None:
        return number(value, signed)
    return f"{number(value, signed)} [{number(low, signed)}, {number(high, signed)}]"


def number(value: float, signed: bool = False) -> str:
    """Three decimals; a probability too small for them by its power of ten."""
    text = f"{value:.0e}" if 0 < abs(value) < 0.0005 else f"{value:.3f}"
    return (("+" if signed and value > 0 else "") + text).replace("-", "−")


def count(number: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _visible(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value, keep="\n")
    if isinstance(value, Mapping):
        return {str(key): _visible(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_visible(inner) for inner in value]
    return value
