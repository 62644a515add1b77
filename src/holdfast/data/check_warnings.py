"""What is no fault of a row, yet worth knowing before training on them: sentences for people."""

from __future__ import annotations

from collections.abc import Mapping

from holdfast.data.findings import Findings, repeats

SMALL_EFFECT = 0.2  # Cohen's word for |d| from here on
MUCH_CUT = 0.05  # share of rows


def warnings_of(found: Findings, rules: Mapping[str, str]) -> list[str]:
    """The sentences, each with its figures.

    Args:
        rules: by layout, how pairs were drawn from rows with more than two completions.
    """
    return [
        *(f"Pairs of '{layout}' rows are drawn: {rule}." for layout, rule in rules.items()),
        *_nothing_left(found),
        *_length_bias(found),
        *_duplicates(found),
        *_labels(found),
        *_control_tokens(found),
        *_template(found),
        *_cuts(found),
    ]


def _nothing_left(found: Findings) -> list[str]:
    return [] if found.good else [f"None of {found.rows} rows can be trained on."]


def _length_bias(found: Findings) -> list[str]:
    bias = found.differences.bias()
    if bias is None or abs(bias.effect_size) <= SMALL_EFFECT or bias.low <= 0 <= bias.high:
        return []
    word = "longer" if bias.mean_difference > 0 else "shorter"
    return [
        f"Chosen completions are {word} than rejected ones by {abs(bias.mean_difference):.1f} on average "
        f"(d = {bias.effect_size:.2f}, 95 % interval {bias.low:.2f} to {bias.high:.2f}): training on sums of "
        "log-probs can learn the length instead of the preference."
    ]


def _duplicates(found: Findings) -> list[str]:
    rows, prompts = repeats(found.ids), repeats(found.prompts)
    sentences = []
    if rows:
        sentences.append(f"{rows} of {found.good} rows repeat an earlier row in full.")
    if prompts > rows:
        sentences.append(
            f"{prompts} of {found.good} rows have the prompt of an earlier row; splits keep them on one side."
        )
    return sentences


def _labels(found: Findings) -> list[str]:
    sentences = []
    if disagreeing := found.scored - found.agreeing:
        sentences.append(
            f"In {disagreeing} of {found.scored} pairs with scores the chosen completion does not score higher."
        )
    if found.unwanted.rows:
        sentences.append(
            f"{found.unwanted.rows} rows are labelled as unwanted answers (`label: false` or `kto_tag: false`, "
            f"the first at {found.unwanted.first}) and would be trained on as demonstrations; take them out."
        )
    return sentences


def _control_tokens(found: Findings) -> list[str]:
    if not found.spelled.rows:
        return []
    return [
        f"{found.spelled.rows} rows spell a control token of the tokenizer inside a message (the first at "
        f"{found.spelled.first}); it becomes the token itself, and can end or open a turn."
    ]


def _template(found: Findings) -> list[str]:
    sentences = []
    if found.header:
        sentences.append(
            "The chat template ignores add_generation_prompt: the header of the assistant's turn "
            f"({found.header!r}) is trained with the answer."
        )
    if found.reworded.rows:
        sentences.append(
            f"{found.reworded.rows} rows: the chat template drops or changes text of earlier assistant turns "
            f"(the first at {found.reworded.first})."
        )
    return sentences


def _cuts(found: Findings) -> list[str]:
    sentences = [
        f"{side.rows_cut} of {side.rows} {name} texts are cut ({100 * side.rows_cut / side.rows:.1f} %, "
        f"{side.tokens_cut} tokens)" + ("." if name == "prompt" else ", and lose their end token.")
        for name, side in found.report.sides.items()
        if side.rows_cut > MUCH_CUT * side.rows
    ]
    if found.report.dropped:
        sentences.append(f"{found.report.dropped} rows are over the length limit and dropped.")
    if found.report.equal_after_cut:
        sentences.append(
            f"{found.report.equal_after_cut} pairs are the same on both sides once cut, and left out."
        )
    return sentences
