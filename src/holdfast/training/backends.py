"""What a trainer chose to compute with, said once: a choice that nobody sees cannot be doubted."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class SayBackends(TrainerCallback):
    """Print the choices before the first step, unless `disable_tqdm` is set.

    A process says the same choices once, however many trainers it has.

    Args:
        chosen: name of the part -> what computes it, in words; read when training begins.
    """

    def __init__(self, chosen: Mapping[str, str]) -> None:
        self.chosen = chosen

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Print one line."""
        if state.is_world_process_zero and not args.disable_tqdm:
            _say_once("; ".join(f"{part}: {words}" for part, words in self.chosen.items()))


@cache
def _say_once(line: str) -> None:
    tqdm.write(line, file=sys.stderr)  # beside the bars: what a command answers stays alone on stdout
