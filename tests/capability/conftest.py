"""What the probe's tests share: the shipped model, a task it knows and one it has never met, and tokens by hand."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.capability.scoring import ScoredTokens
from holdfast.demo.run import start_folder
from holdfast.demo.world import render_answer
from holdfast.models.loading import load_model, load_tokenizer


@pytest.fixture(scope="session")
def start() -> Iterator[str]:
    """The demo's trained model, as a folder."""
    with start_folder() as folder:
        yield str(folder)


@pytest.fixture
def model(start: str) -> PreTrainedModel:
    return load_model(start, dtype="float32")


@pytest.fixture(scope="session")
def tokenizer(start: str) -> PreTrainedTokenizerBase:
    return load_tokenizer(start)


def cipher_rows(count: int, seed: int = 0, letters: int = 4) -> list[dict[str, Any]]:
    """Answers in the world's format to a task that the shipped model was never trained on."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        text = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, letters)))
        turned = "".join(chr((ord(letter) - 97 + 3) % 26 + 97) for letter in text)
        rows.append({"prompt": f"cipher {text}", "completion": render_answer(turned)})
    return rows


def by_hand(probabilities: list[list[float]], targets: list[list[int]] | None = None) -> ScoredTokens:
    """Rows of probabilities as scored tokens; without `targets`, every token is another one."""
    lengths = [len(row) for row in probabilities]
    flat = np.array([p for row in probabilities for p in row])
    ids = np.arange(len(flat)) if targets is None else np.array([t for row in targets for t in row])
    with np.errstate(divide="ignore"):
        logps = np.log(flat)
    return ScoredTokens(logps, ids, np.repeat(np.arange(len(lengths)), lengths), len(lengths))


def tokenized(rows: list[tuple[list[int], list[int]]]) -> Dataset:
    """Prompt and completion ids as a data set of tokenized rows."""
    return Dataset.from_dict(
        {
            "input_ids": [prompt + completion for prompt, completion in rows],
            "completion_mask": [[False] * len(p) + [True] * len(c) for p, c in rows],
            "row_index": list(range(len(rows))),
        }
    )
