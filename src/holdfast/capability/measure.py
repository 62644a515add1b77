"""`probe`: a model and rows -> where the model stands on the capability continuum for these rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedTokenizerBase

from holdfast.capability.blind_guess import blind_guess
from holdfast.capability.demonstrations import RowSettings, take_in_demonstrations
from holdfast.capability.hardest import hardest
from holdfast.capability.intervals import SEEDS, Estimate, prompt_numbers, row_bootstrap
from holdfast.capability.recommendation import recommend
from holdfast.capability.regime import regime_of
from holdfast.capability.report import CapabilityReport, Probed
from holdfast.capability.scoring import ScoredTokens, score_tokens
from holdfast.capability.summary import Group, by_index, by_part, groups, share_ruled_out, summarise
from holdfast.data.encoders import TrainOn
from holdfast.data.lengths import MAX_LENGTH, Overflow
from holdfast.data.sampling import some_rows
from holdfast.data.sources import file_of, read_rows
from holdfast.data.splits import position
from holdfast.data.stored import StoredRows
from holdfast.data.validation import Mode
from holdfast.errors import ConfigError, DataError, did_you_mean
from holdfast.models.loading import load_model, load_tokenizer, read_chat_template, with_padding
from holdfast.models.token_logprobs import causal_lm_of

ROWS = 2000  # probed unless told otherwise; an interval of a mean of p is then about ±0.01
SOURCES = 30  # groups by source; the others become one
SOURCE_COLUMN = "source"  # read where rows have it
Mask = NDArray[np.bool_]


def probe(
    model: nn.Module | str | Path,
    tokenizer: PreTrainedTokenizerBase | str | Path | None,
    rows: Any,
    *,
    limit: int | None = ROWS,
    batch_size: int = 8,
    seed: int = 0,
    dtype: str = "float32",
    model_revision: str | None = None,
    max_length: int = MAX_LENGTH,
    max_prompt_length: int | None = None,
    on_overflow: Overflow = "cut",
    train_on: TrainOn = "last",
    append_eos: bool = False,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    validation: Mode = "strict",
    format: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    source_column: str | None = None,
    progress: bool = False,
    num_proc: int | None = None,
    cache_dir: str | Path | None = None,
) -> CapabilityReport:
    """Measure the probability a model gives to its target tokens, and recommend an objective.

    The rows are checked and tokenized as `holdfast sft` does (a pair by its chosen side). A model is read as it stands:
    on its device, in its dtype, in evaluation mode. The same arguments give the same report.

    Args:
        model: a causal LM, or a folder or hub name to load.
        tokenizer: a tokenizer or its name; None takes the model's own.
        rows: a file, folder, hub name, data set or iterable of rows.
        limit: rows to probe, a seeded sample; None for all.
        batch_size: rows a forward; changes nothing but rounding.
        seed: chooses the sample, and the draws of the intervals.
        dtype, model_revision: of a model given by name, which goes to the GPU if there is one.
        chat_template: a `.jinja` file, or a tokenizer whose template to take.
        max_length, ..., revision, num_proc, cache_dir: see `RowSettings`.
        source_column: a column whose values are told apart; None takes `source` where rows have it, else the files.

    Raises:
        DataError, InvalidRows: rows that cannot be read or used; names each place.
        ModelError: a model that cannot be read, or whose logits cannot be reproduced.
        ConfigError: a setting that is out of its range.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"rows: at least 1 must be probed, not {limit}")
    if not 0 <= seed < SEEDS:
        raise ConfigError(f"seed: must be at least 0 and below 2**32, not {seed}")
    rows = list(rows) if isinstance(rows, Iterator) else rows
    own, reader = load(model, tokenizer, dtype=dtype, revision=model_revision, chat_template=chat_template)
    settings = RowSettings(
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        on_overflow=on_overflow,
        train_on=train_on,
        append_eos=append_eos,
        chat_template=chat_template,
        chat_template_kwargs=chat_template_kwargs,
        validation=validation,
        format=format,
        split=split,
        revision=revision,
        num_proc=num_proc,
        cache_dir=cache_dir,
    )
    vocabulary = causal_lm_of(own).get_input_embeddings().weight.shape[0]
    intake = take_in_demonstrations(rows, reader, settings, vocab_size=vocabulary, seed=seed)
    sample = some_rows(intake.rows, limit, seed)
    scored = score_tokens(
        own, sample.tokens, int(reader.pad_token_id), batch_size=batch_size, progress=progress
    )
    where, prompts = zip(*((record.where, position(record, seed)) for record in sample), strict=True)
    prompt_of = prompt_numbers(prompts)
    probed = Probed(
        model=_name_of(model, own),
        data=intake.report.source,
        rows=len(intake.rows),
        sampled=len(sample),
        prompts=int(prompt_of.max()) + 1,
        refused=sum(intake.report.refused.values()),
        digest=sample.digest(),
        seed=seed,
        max_length=max_length,
        dtype=str(causal_lm_of(own).dtype).removeprefix("torch."),
        cut=_cut(sample),
    )
    sources = _sources(rows, where, source_column, split, revision)
    named = str(rows) if isinstance(rows, str | Path) else "DATA"
    scored = replace(scored, prompt_of=prompt_of)
    return assemble(scored, where, sources, probed, settings.run(probed.model, named))


def assemble(
    scored: ScoredTokens,
    where: Sequence[str],
    sources: Sequence[str],
    probed: Probed,
    run: Mapping[str, Any],
) -> CapabilityReport:
    """The report on scored tokens.

    Args:
        where, sources: each row's place, and the group it belongs to.
        run: see `recommend`.
    """
    guess = blind_guess(scored.targets, scored.row_of, scored.prompt_of)
    informative = guess.informative
    every = summarise(scored, np.ones_like(informative), probed.seed)
    if every is None:
        raise DataError("there is no target token to probe")
    carrying = summarise(scored, informative, probed.seed)
    capability, guessed = _above_guessing(scored, informative, guess.probability, probed.seed)
    unknown_format = share_ruled_out(scored, ~informative, probed.seed)
    regime = regime_of(capability, probed.prompts)
    answers = np.exp(np.bincount(scored.row_of, scored.logps, scored.rows))
    whole_answer = row_bootstrap(answers, np.ones(scored.rows), probed.seed, scored.prompt_of)[0]
    return CapabilityReport(
        probed=probed,
        every=every,
        informative=carrying,
        format_ruled_out=unknown_format,
        guess=guessed,
        capability=capability,
        whole_answer=whole_answer,
        by_index=by_index(scored, informative, probed.seed),
        by_part=by_part(scored, informative, probed.seed),
        by_source=_by_source(scored, informative, sources, probed.seed),
        hardest=hardest(scored, informative, where),
        regime=regime,
        recommendation=recommend(
            regime, every, carrying, unknown_format, whole_answer, run, prompts=probed.prompts
        ),
    )


def _above_guessing(
    scored: ScoredTokens, informative: Mask, guessed: NDArray[np.float64], seed: int
) -> tuple[Estimate, Estimate]:
    """(p − q)/(1 − q) and q over the informative tokens."""
    if not informative.any():
        return Estimate(None), Estimate(None)
    row_of = scored.row_of[informative]

    def sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(row_of, values[informative], scored.rows).astype(float)

    ones = np.ones_like(guessed)
    capability, guess = row_bootstrap(
        [sums(scored.probabilities - guessed), sums(guessed)],
        [sums(ones - guessed), sums(ones)],
        seed,
        scored.prompt_of,
    )
    return capability, guess


def _by_source(
    scored: ScoredTokens, informative: Mask, sources: Sequence[str], seed: int
) -> tuple[Group, ...]:
    """Groups by source, the one of most rows first; past `SOURCES`, one for the others."""
    ranked = [name for name, _ in Counter(sources).most_common()]
    names = ranked if len(ranked) <= SOURCES else [*ranked[:SOURCES], "others"]
    number = {name: min(place, len(names) - 1) for place, name in enumerate(ranked)}
    of_row = np.array([number[name] for name in sources])
    return groups(scored, informative, of_row[scored.row_of], names, seed)


def _sources(
    rows: Any, where: Sequence[str], column: str | None, split: str | None, revision: str | None
) -> list[str]:
    """Each row's source: its value in the column, or its file.

    Raises:
        DataError: a column was named, and no row has it.
    """
    wanted, values, columns = set(where), dict[str, str](), set[str]()
    for place, row in read_rows(rows, split, revision):
        if place in wanted and isinstance(row, Mapping):
            columns |= {str(key) for key in row}
            value = row.get(column or SOURCE_COLUMN)
            if isinstance(value, str | int | bool):
                values[place] = str(value)
    if values:
        return [values.get(place, "(none)") for place in where]
    if column is not None:
        raise DataError(f"source_column '{column}': no row has it{did_you_mean(column, columns)}")
    return [file_of(place) or place for place in where]


def load(
    model: nn.Module | str | Path,
    tokenizer: PreTrainedTokenizerBase | str | Path | None,
    *,
    dtype: str = "float32",
    revision: str | None = None,
    chat_template: str | None = None,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model and its tokenizer, each loaded where it is a name; the tokenizer pads, and has the template asked for.

    A tokenizer that is given takes the template on, as the trainers have it.
    """
    if tokenizer is None:
        tokenizer = str(model if isinstance(model, str | Path) else causal_lm_of(model).config._name_or_path)
        if not tokenizer:
            raise ConfigError("the model does not say where its tokenizer is: pass one")
    if isinstance(tokenizer, str | Path):
        reader = load_tokenizer(
            str(tokenizer),
            revision=revision if str(tokenizer) == str(model) else None,
            chat_template=chat_template,
        )
    else:
        reader = with_padding(tokenizer)
        if chat_template is not None:
            reader.chat_template = read_chat_template(chat_template)
    if not isinstance(model, str | Path):
        return model, reader
    own: Any = load_model(str(model), revision=revision, dtype=dtype)
    return own.to("cuda" if torch.cuda.is_available() else "cpu"), reader


def _name_of(model: nn.Module | str | Path, own: nn.Module) -> str:
    if isinstance(model, str | Path):
        return str(model)
    return str(causal_lm_of(own).config._name_or_path) or type(causal_lm_of(own)).__name__


def _cut(sample: StoredRows) -> int:
    """Rows whose answer the length rule cut."""
    side = sample.lengths().sides.get("completion")
    return side.rows_cut if side is not None else 0
