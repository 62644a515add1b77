"""The rows of a probe: read, checked and tokenized as supervised fine-tuning does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from holdfast.data.encoders import TrainOn
from holdfast.data.examine import checker
from holdfast.data.intake import Intake, take_in
from holdfast.data.lengths import MAX_LENGTH, LengthRule, Overflow
from holdfast.data.validation import Mode

# Settings of a run's `data` and `model` sections; `train_on` is the stage's.
OF_THE_DATA = ("format", "split", "revision", "validation", "max_length", "max_prompt_length", "on_overflow")
OF_THE_MODEL = ("append_eos", "chat_template", "chat_template_kwargs")


@dataclass(frozen=True)
class RowSettings:
    """How rows become tokens; fields and defaults are a run's.

    Attributes:
        validation: `strict` refuses bad rows, `lenient` leaves them out.
        format, split, revision: of the rows; see `take_in`.
        chat_template: where the tokenizer's template was taken from; for the run's YAML alone.
        num_proc, cache_dir: see `take_in`.
    """

    max_length: int = MAX_LENGTH
    max_prompt_length: int | None = None
    on_overflow: Overflow = "cut"
    train_on: TrainOn = "last"
    append_eos: bool = False
    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    validation: Mode = "strict"
    format: str | None = None
    split: str | None = None
    revision: str | None = None
    num_proc: int | None = None
    cache_dir: str | Path | None = None

    def run(self, model: str, data: str) -> dict[str, Any]:
        """A run's YAML of supervised fine-tuning on such rows, but for the objective; defaults are left out."""
        default = RowSettings()

        def given(names: tuple[str, ...]) -> dict[str, Any]:
            return {name: value for name in names if (value := getattr(self, name)) != getattr(default, name)}

        of_the_model = given(OF_THE_MODEL)
        return {
            "model": {"name": model, **of_the_model} if of_the_model else model,
            "data": {"source": data, **given(OF_THE_DATA)},
            "sft": given(("train_on",)),
            "output_dir": f"runs/sft-{Path(model).name or 'model'}",
        }


def take_in_demonstrations(
    rows: Any,
    tokenizer: PreTrainedTokenizerBase,
    settings: RowSettings,
    *,
    vocab_size: int | None = None,
    seed: int = 0,
) -> Intake:
    """Supervised rows, or pairs by their chosen side, checked and tokenized.

    Raises:
        DataError, InvalidRows: rows that cannot be read, or bad ones under strict validation; names each place.
        ConfigError: lengths that leave no room; an unknown layout.
    """
    work = checker(
        "sft",
        tokenizer,
        LengthRule(settings.max_length, settings.max_prompt_length, settings.on_overflow),
        train_on=settings.train_on,
        append_eos=settings.append_eos,
        vocab_size=vocab_size,
        chat_template_kwargs=settings.chat_template_kwargs,
        seed=seed,
    )
    intake = take_in(
        rows,
        work,
        format=settings.format,
        split=settings.split,
        revision=settings.revision,
        num_proc=settings.num_proc,
        cache_dir=settings.cache_dir,
    )
    intake.require(settings.validation)
    return intake
