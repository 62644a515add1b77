"""What `holdfast check` found, in words: the terminal and the page say the same.

A report is `CheckReport.as_dict()`, or the JSON object that `holdfast check --json` prints, made `harmless`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from holdfast.errors import DataError
from holdfast.reports.metrics import format_number
from holdfast.reports.visible import visible

Report = Mapping[str, Any]
Pieces = Sequence[tuple[str, bool]]  # decoded text, and whether its tokens are trained

REASONS = {
    "unparsable_json": "the line is not JSON",
    "invalid_text": "bytes that are not UTF-8, or a lone surrogate",
    "wrong_type": "a value is not what its key promises",
    "missing_key": "a key the layout needs is absent",
    "unknown_role": "a message's role is none that chat templates know",
    "turn_order": "the completion is not one assistant turn behind the prompt",
    "empty_prompt": "nothing to answer",
    "empty_completion": "nothing to learn: empty, or nothing that can be seen",
    "equal_pair": "chosen and rejected are the same",
    "template": "the chat template refuses the row, or what it gives cannot be trained on",
    "vocabulary": "a token id the model has no embedding for",
    "too_long": "over the length limit",
}
KEYS = (
    *("source", "kind", "formats", "rows", "good", "refused", "problems", "unit", "lengths", "truncation"),
    *("length_bias", "duplicate_prompts", "duplicate_rows", "label_agreement", "template", "examples"),
    *("warnings", "digest", "seconds"),
)
# Names of Cohen (1988) for |d|, each up to its bound.
EFFECTS = ((0.2, "a negligible"), (0.5, "a small"), (0.8, "a medium"), (math.inf, "a large"))
NO_BIAS = "Not measured: that takes at least two good pairs that do not all differ by the same length."
PIECES = 12  # pieces of an example shown


class Verdict(NamedTuple):
    """The report in one sentence."""

    passed: bool
    sentence: str


class Refused(NamedTuple):
    """Bad rows of one reason, and what it means."""

    rows: str
    reason: str
    meaning: str


class Cut(NamedTuple):
    """What the length rule cut of one side, as texts."""

    side: str
    rows: str
    tokens: str


def harmless(report: Report, place: str = "the report") -> dict[str, Any]:
    """The report with every text made visible; rows of an example keep their line breaks and tabs.

    Raises:
        DataError: a key is missing; names it and `place`.
    """
    missing = [key for key in KEYS if key not in report]
    if missing:
        raise DataError(f"{place}: is no report of `holdfast check`: it lacks {', '.join(missing)}")
    return {key: _visible_values(value, "\n\t" if key == "examples" else "") for key, value in report.items()}


def _visible_values(value: Any, keep: str) -> Any:
    if isinstance(value, str):
        return visible(value, keep)
    if isinstance(value, Mapping):
        return {visible(str(key)): _visible_values(inner, keep) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_visible_values(inner, keep) for inner in value]
    return value


def verdict(report: Report) -> Verdict:
    """Whether the rows can be trained on as they are, and how many cannot be used."""
    good, bad, all_rows = report["good"], _bad(report), count(report["rows"], "row")
    failed = [check["name"] for check in report["template"] if not check["passed"]]
    if not report["rows"]:
        return Verdict(False, "There are no rows.")
    if not good:
        return Verdict(False, f"None of {all_rows} can be trained on.")
    if bad:
        part = share(bad, report["rows"])
        return Verdict(False, f"{bad:,} of {all_rows} cannot be used ({part}); {good:,} can.")
    if failed:
        return Verdict(False, f"The chat template fails: {', '.join(failed)}.")
    if good < report["rows"]:
        return Verdict(
            True, f"{good:,} of {all_rows} can be trained on; the length rule leaves out the rest."
        )
    return Verdict(
        True, f"All {all_rows} can be trained on." if good > 1 else "The only row can be trained on."
    )


def facts(report: Report) -> str:
    """What was checked, as what, and how to recognise the good rows again."""
    kinds = {"preference": "preference pairs", "sft": "supervised rows"}
    parts = [kinds[report["kind"]], f"checked in {report['seconds']:.1f} s"]
    return ", ".join(parts + ([f"digest {report['digest']}"] if report["good"] else []))


def rows(report: Report) -> str:
    """Rows read, good and bad."""
    good, bad = report["good"], _bad(report)
    left_out = report["rows"] - good - bad
    parts = [f"{count(report['rows'], 'row')}: {good:,} good, {bad:,} bad"]
    return ", ".join(parts + ([f"{left_out:,} left out by the length rule"] if left_out else []))


def refused(report: Report) -> list[Refused]:
    """Bad rows by reason, most frequent first."""
    return [
        Refused(f"{rows:,}", reason, REASONS.get(reason, "")) for reason, rows in report["refused"].items()
    ]


def unlisted(report: Report, shown: int) -> str:
    """How many bad rows are not among the first `shown`."""
    more = _bad(report) - shown
    return f"and {more:,} more; `--quarantine FILE` writes every one of them" if more > 0 else ""


def length_words(found: Mapping[str, Any]) -> list[str]:
    """Mean, median and maximum of one side."""
    mean, median = format_number(found["mean"]), format_number(found["median"])
    return [f"mean {mean}", f"median {median}", f"max {found['largest']:,}"]


def axis(found: Mapping[str, Any]) -> list[str]:
    """The first, middle and last edge of a histogram; the middle one only where it halves the bins.

    Where the last bin is wider than the first, as it takes the long tail, it is named by where it begins.
    """
    edges = found["edges"]
    middle = [f"{edges[len(edges) // 2]:,}"] if len(edges) % 2 else []
    tail = edges[-1] - edges[-2] > edges[1] - edges[0]
    return [f"{edges[0]:,}", *middle, f"{edges[-2]:,}+" if tail else f"{edges[-1]:,}"]


def cuts(report: Report) -> list[Cut]:
    """What the length rule cut, by side; empty where no tokenizer was given."""
    return [
        Cut(
            side,
            f"{found['rows_cut']:,} of {count(found['rows'], 'row')} ({share(found['rows_cut'], found['rows'])})",
            f"{found['tokens_cut']:,} of {found['tokens']:,} tokens ({share(found['tokens_cut'], found['tokens'])})",
        )
        for side, found in ((report["truncation"] or {}).get("sides") or {}).items()
    ]


def cut_notes(report: Report) -> list[str]:
    """What the length rule's table cannot show."""
    truncation = report["truncation"]
    if truncation is None:
        return ["Not measured: that takes a tokenizer."] if report["good"] else []
    notes = [limits(truncation)]
    if any(found["rows_cut"] for side, found in truncation["sides"].items() if side != "prompt"):
        notes.append("A completion that is cut loses its end token: it does not teach the model to stop.")
    if truncation["dropped"]:
        notes.append(f"Dropped for their length: {count(truncation['dropped'], 'row')}.")
    if truncation["equal_after_cut"]:
        pairs = count(truncation["equal_after_cut"], "pair")
        notes.append(f"Left out, as both sides are the same after the cut: {pairs}.")
    return notes


def limits(truncation: Mapping[str, Any]) -> str:
    """The length rule."""
    names = ("max_length", "max_prompt_length")
    given = [f"{name} {truncation[name]:,}" for name in names if truncation[name] is not None]
    return f"Limits: {', '.join([*given, 'longer rows: ' + truncation['on_overflow']]) if given else 'none'}."


def findings(report: Report) -> list[tuple[str, str]]:
    """Length bias, duplicates and label agreement, each with its name; nothing where no row is good."""
    if not report["good"]:
        return []
    prompts, rows = report["duplicate_prompts"], report["duplicate_rows"]
    repeated = f"Rows with the prompt of an earlier row: {prompts:,}. Rows that repeat one in full: {rows:,}."
    found = [("Duplicates", repeated if prompts or rows else "None: every row has a prompt of its own.")]
    if report["kind"] == "sft":
        return found
    bias, agreement = report["length_bias"], report["label_agreement"]
    return [
        ("Length bias", bias_words(bias, report["unit"]) if bias else NO_BIAS),
        *found,
        (
            "Labels and scores",
            "Not measured: the rows have no scores."
            if agreement is None
            else f"The chosen answer has the higher score in {share(agreement, 1)} of the pairs with scores.",
        ),
    ]


def bias_words(bias: Mapping[str, Any], unit: str) -> str:
    """Which side is longer, by how much, and what Cohen would call it."""
    difference = bias["mean_difference"]
    size = f"{abs(difference):,.1f}".removesuffix(".0")
    length = f"{size} {unit} {'shorter' if difference < 0 else 'longer'}"
    pairs = count(bias["pairs"], "pair")
    sentence = (
        f"Chosen answers are longer in {share(bias['chosen_longer'], 1)} of {pairs}, and {length} on average"
    )
    effect, low, high = bias["effect_size"], bias["low"], bias["high"]
    if not all(value is not None and math.isfinite(value) for value in (effect, low, high)):
        return f"{sentence}; too little varies for an effect size."
    measured = f"{sentence}: d = {effect:.2f} [{low:.2f}, {high:.2f}]"
    if low <= 0 <= high:
        return f"{measured}, which is not distinguishable from no bias."
    word = next(name for bound, name in EFFECTS if abs(effect) < bound)
    return f"{measured}, {word} bias to {'shorter' if effect < 0 else 'longer'} answers."


def ways_on(report: Report) -> list[str]:
    """What to do next, most urgent first."""
    good, ways = report["good"], []
    if _bad(report):
        ways.append("Mend the bad rows; `--quarantine FILE` writes every one of them with its reason.")
        if good:
            ways.append(f"Or train on the other {good:,}: set `data.validation=lenient`.")
    if report["unit"] == "characters":
        ways.append(
            "Lengths are in characters. `--model NAME_OR_FOLDER` counts tokens, tells what would be cut, "
            "checks the chat template and shows which tokens are trained."
        )
    if good and not ways:
        ways.append(f"Train: `holdfast run CONFIG.yaml data.source={shlex.quote(report['source'])}`")
    return ways


def example_sides(example: Mapping[str, Any], characters: int) -> dict[str, list[tuple[str, bool]]]:
    """The pieces of an example by side, abridged; a prompt that both sides share is shown once."""
    shared: tuple[str, bool] | None = None
    sides = {}
    for side, pieces in example["sides"].items():
        shown = [(text, trained) for text, trained in pieces]
        if shared is not None and shown[:1] == [shared]:
            shown[0] = ("[the same prompt] ", False)
        elif shown and not shown[0][1]:
            shared = shown[0]
        sides[side] = abridge(shown, characters)
    return sides


def abridge(pieces: Pieces, characters: int) -> list[tuple[str, bool]]:
    """The first and last pieces, each with its first and last characters; what is left out is counted."""
    shown = [(middle_out(text, characters), trained) for text, trained in pieces]
    if len(shown) <= PIECES:
        return shown
    half = PIECES // 2
    return [*shown[:half], (f"[... {len(shown) - 2 * half:,} pieces ...]", False), *shown[-half:]]


def middle_out(text: str, characters: int) -> str:
    """The first and last `characters` of a longer text together, and how many are between them."""
    left_out = len(text) - characters
    note = f" [... {left_out:,} characters ...] "
    if left_out <= len(note):  # the note would take more room than it spares
        return text
    tail = characters // 3
    return text[: characters - tail] + note + text[-tail:]


def count(number: int, noun: str) -> str:
    """`1 row`, `1,234 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def share(part: float, whole: float) -> str:
    """A percentage that is 0 % or 100 % only where that is exact."""
    percent = 100 * part / whole if whole else 0.0
    if 0 < percent < 0.1:
        return "< 0.1 %"
    if 99.9 < percent < 100:
        return "> 99.9 %"
    return f"{percent:.1f}".removesuffix(".0") + " %"


def _bad(report: Report) -> int:
    return sum(report["refused"].values())
