"""The table of accepted row layouts, and which of them a file's rows have.

To add a layout: write `is_<name>(row)` and `read_<name>(row, where)` beside the others of its kind, and add
an entry to `FORMATS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from holdfast.data import preference_layouts, scored_layouts, sft_layouts
from holdfast.data.faults import RowFault, kind_of, names_of
from holdfast.data.records import PreferenceRecord, Record, Row, SFTRecord
from holdfast.errors import ConfigError, DataError, did_you_mean

Kind = Literal["preference", "sft"]


@dataclass(frozen=True)
class Format:
    """One row layout.

    Attributes:
        name: what `data.format` calls it.
        kind: what its rows are; preference rows also serve as demonstrations, by their chosen side.
        keys: the keys a row must have.
        values: what stands under them, in words.
        matches: whether a row (a mapping) has this layout.
        read: (row, where) -> the record; raises RowFault without a place.
        read_sft: the same for a demonstration, where a row of pairs gives one without giving a pair.
        rule: how a pair is drawn where a row holds more than two completions, `{seed}` in it; `read` then takes
            a `seed` too. Empty for the other layouts.
        taken: how it came to be a file's layout, in words; empty in the table.
    """

    name: str
    kind: Kind
    keys: tuple[str, ...]
    values: str
    matches: Callable[[Row], bool]
    read: Callable[..., Record]
    read_sft: Callable[[Row, str], SFTRecord] | None = None
    rule: str = ""
    taken: str = ""

    def seeded(self, seed: int) -> Format:
        """The layout with the seed its pairs are drawn by; itself where it draws none."""
        if not self.rule:
            return self
        return replace(self, read=partial(self.read, seed=seed), rule=self.rule.format(seed=seed))

    def to_preference(self, row: Any, where: str) -> PreferenceRecord:
        """The row as a preference pair.

        Raises:
            RowFault: the row cannot be used; it names the place, the reason and the key.
            DataError: the layout holds no pairs.
        """
        if self.kind != "preference":
            raise DataError(f"rows of the layout '{self.name}' hold one completion; a preference needs two")
        record = self._read(row, where, self.read)
        assert isinstance(record, PreferenceRecord)
        return record

    def to_sft(self, row: Any, where: str) -> SFTRecord:
        """The row as a demonstration; of a preference pair, the chosen side.

        Raises:
            RowFault: the row cannot be used; it names the place, the reason and the key.
        """
        record = self._read(row, where, self.read_sft or self.read)
        return record.chosen_as_sft() if isinstance(record, PreferenceRecord) else record

    def _read(self, row: Any, where: str, read: Callable[..., Record]) -> Record:
        try:
            if not isinstance(row, dict):
                raise RowFault("wrong_type", f"a row must be an object of named values, not {kind_of(row)}")
            return read(row, where)
        except RowFault as fault:
            detail = f"{fault.detail}{self._misfit(row)}"
            raise RowFault(fault.reason, detail, where, check=fault.check) from None
        except RecursionError:
            raise RowFault("wrong_type", "the row is nested too deeply to be read", where) from None

    def _misfit(self, row: Any) -> str:
        """Of a faulty row with another layout than its file, or none of its keys: what was taken, and why."""
        if not self.taken or not isinstance(row, dict) or self.matches(row):
            return ""
        other = next((form.name for form in FORMATS if form.matches(row)), None)
        if other is None and not row.keys().isdisjoint(self.keys):
            return ""
        looks = f"this row looks like '{other}', but " if other else ""
        return f"; {looks}the file is read as '{self.name}', {self.taken}"


def detect_format(
    rows_sample: Sequence[Any], kind: Kind = "preference", source: str = "these rows"
) -> Format:
    """The layout most rows of a sample have. Malformed rows have none, and do not vote.

    Where no row has the right values, a layout whose keys are there is taken, and each row then says what is
    wrong with it.

    Raises:
        DataError: no row has the keys of a known layout; lists the keys found and the layouts known.
    """
    candidates = formats_for(kind)
    objects = [row for row in rows_sample if isinstance(row, dict)]
    fitting = [next((form for form in candidates if form.matches(row)), None) for row in objects]
    votes = Counter(form.name for form in fitting if form is not None)
    if votes:
        [(name, count)] = votes.most_common(1)
        taken = f"the layout of {count} of its first {len(rows_sample)} readable rows; {_OTHERWISE}"
        return replace(get_format(name, kind), taken=taken)
    fit_another_kind = [
        form for form in FORMATS if form not in candidates and any(map(form.matches, objects))
    ]
    keyed = [
        form
        for form in candidates
        if any(row.keys() >= set(form.keys) for row in objects)
        # rows of another kind with the same keys are what they fit
        and not any(set(other.keys) >= set(form.keys) for other in fit_another_kind)
    ]
    if keyed:
        taken = f"whose keys its first rows have; {_OTHERWISE}"
        return replace(max(keyed, key=lambda form: len(form.keys)), taken=taken)
    raise DataError(_unknown_layout(rows_sample, kind, source))


def get_format(name: str, kind: Kind = "preference") -> Format:
    """The layout called `name`, if it can serve as `kind`."""
    found = next((form for form in FORMATS if form.name == name), None)
    if found is None:
        raise ConfigError(
            f"no row layout is called '{name}'{did_you_mean(name, [form.name for form in FORMATS])}"
        )
    if found not in formats_for(kind):
        raise ConfigError(
            f"rows of the layout '{name}' hold one completion; a preference needs two ({_SUPERVISED})"
        )
    return found


def formats_for(kind: Kind) -> list[Format]:
    """The layouts that can serve as `kind`, in the order they are tried."""
    own = [form for form in FORMATS if form.kind == kind]
    return own if kind == "preference" else own + formats_for("preference")


_SUPERVISED = "`--kind sft`; in a run, leave `align` out"
_OTHERWISE = "name another with `data.format` (--format), or give such rows a file of their own"


def _unknown_layout(rows_sample: Sequence[Any], kind: Kind, source: str) -> str:
    objects = [row for row in rows_sample if isinstance(row, dict)]
    if not rows_sample:
        return f"{source}: no rows"
    if not objects:
        hint = "; a file that is one array is to be named .json" if isinstance(rows_sample[0], list) else ""
        return f"{source}: rows must be objects of named values, not {kind_of(rows_sample[0])}{hint}"
    keys = {key: value for row in reversed(objects) for key, value in row.items()}
    known = formats_for(kind)
    lines = [f"{source}: no known layout of {kind} rows"]
    lines += [
        f"  these are '{form.name}' rows: supervised, one completion each ({_SUPERVISED})"
        for form in FORMATS
        if form not in known and any(map(form.matches, objects))
    ]
    fits_another_kind = len(lines) > 1
    lines.append(f"  keys found: {names_of(f'{key} ({kind_of(value)})' for key, value in keys.items())}")
    nearest = max(known, key=lambda form: sum(key in keys for key in form.keys) / len(form.keys))
    missing = [key for key in nearest.keys if key not in keys]
    if not fits_another_kind and missing and len(missing) < len(nearest.keys):
        lines.append(f"  nearest: '{nearest.name}', but there is no {' and no '.join(map(repr, missing))}")
    lines += [
        "  known layouts:",
        *(f"    {form.name}: {', '.join(form.keys)}; {form.values}" for form in known),
    ]
    lines.append("Rename the keys to one of these, or name the layout with `data.format` (--format).")
    return "\n".join(lines)


# In the order they are tried: a layout that asks for more comes before one that asks for less.
FORMATS: tuple[Format, ...] = (
    Format(
        "hh_rlhf",
        "preference",
        ("chosen", "rejected"),
        "strings of `Human:` and `Assistant:` turns",
        preference_layouts.is_hh_rlhf,
        preference_layouts.read_hh_rlhf,
    ),
    Format(
        "preference_sharegpt",
        "preference",
        ("conversations", "chosen", "rejected"),
        "a list of {from, value}, and one such message each",
        preference_layouts.is_sharegpt,
        preference_layouts.read_sharegpt,
    ),
    Format(
        "preference_openai",
        "preference",
        ("messages", "chosen", "rejected"),
        "a list of {role, content}, and one such message each",
        preference_layouts.is_openai,
        preference_layouts.read_openai,
    ),
    Format(
        "preference_implicit",
        "preference",
        ("chosen", "rejected"),
        "whole conversations, lists of {role, content} that share all but the last turn",
        preference_layouts.is_implicit,
        preference_layouts.read_implicit,
    ),
    Format(
        "preference_text",
        "preference",
        ("prompt", "chosen", "rejected"),
        "strings",
        preference_layouts.is_text,
        preference_layouts.read_explicit,
    ),
    Format(
        "preference_messages",
        "preference",
        ("prompt", "chosen", "rejected"),
        "lists of {role, content}",
        preference_layouts.is_messages,
        preference_layouts.read_explicit,
    ),
    Format(
        "hh_prompt",
        "preference",
        ("prompt", "chosen", "rejected"),
        "a string of `Human:` and `Assistant:` turns, and two strings without such marks",
        preference_layouts.is_hh_prompt,
        preference_layouts.read_hh_prompt,
    ),
    Format(
        "preference_alpaca",
        "preference",
        ("instruction", "chosen", "rejected"),
        "strings, and `input` where there is one",
        preference_layouts.is_alpaca,
        preference_layouts.read_alpaca,
    ),
    Format(
        "alpaca_ranking",
        "preference",
        ("instruction", "output"),
        "a string, and a list of the better answer and the worse; `input` where there is one",
        preference_layouts.is_alpaca_ranking,
        preference_layouts.read_alpaca_ranking,
    ),
    Format(
        "ultrafeedback",
        "preference",
        ("instruction", "completions"),
        "a string, and a list of {response, overall_score}",
        scored_layouts.is_ultrafeedback,
        scored_layouts.read_ultrafeedback,
        scored_layouts.read_ultrafeedback_best,
        "the best overall_score (the first of equals) against one completion that scores lower, drawn by a "
        "hash of the row with seed {seed}; completions that are empty, null or N/A, or have no score, take no "
        "part; rows whose completions all score the same give no pair, and as demonstrations the first of the best",
    ),
    Format(
        "messages",
        "sft",
        ("messages",),
        "a list of {role, content}",
        sft_layouts.is_messages,
        sft_layouts.read_messages,
    ),
    Format(
        "sharegpt",
        "sft",
        ("conversations",),
        "a list of {from, value}",
        sft_layouts.is_sharegpt,
        sft_layouts.read_sharegpt,
    ),
    Format(
        "prompt_completion",
        "sft",
        ("prompt", "completion"),
        "strings or lists of {role, content}",
        sft_layouts.is_prompt_completion,
        sft_layouts.read_prompt_completion,
    ),
    Format(
        "alpaca",
        "sft",
        ("instruction", "output"),
        "strings, and `input` where there is one",
        sft_layouts.is_alpaca,
        sft_layouts.read_alpaca,
    ),
    Format(
        "text",
        "sft",
        ("text",),
        "a string, trained as it stands",
        sft_layouts.is_text,
        sft_layouts.read_text,
    ),
)
