"""What a model answers to tokenized prompts, and how often that is the demonstration's answer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Question:
    """A prompt's tokens, and the text that answers it: the last trained turn of a row, without its end token."""

    prompt_ids: list[int]
    answer: str
    answer_tokens: int


def questions(
    dataset: Any, tokenizer: PreTrainedTokenizerBase, end_tokens: Collection[int]
) -> list[Question]:
    """The last run of trained tokens of each row (`input_ids`, `completion_mask`), and what stands before it."""
    found = []
    for row in dataset:
        ids, mask = row["input_ids"], row["completion_mask"]
        end = len(mask) - mask[::-1].index(True)
        start = end
        while start and mask[start - 1]:
            start -= 1
        found.append(Question(ids[:start], answer_text(tokenizer, ids[start:end], end_tokens), end - start))
    return found


def answer_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], end_tokens: Collection[int]) -> str:
    """The text before the first end token, without the whitespace around it.

    Special tokens in mid-answer stay visible: an answer that holds one is no exact match.
    """
    stop = next((place for place, token in enumerate(ids) if token in end_tokens), len(ids))
    text = tokenizer.decode(ids[:stop], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(text).strip()


@torch.no_grad()
def exact_matches(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Question],
    end_tokens: Collection[int],
    *,
    temperature: float,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 32,
    description: str | None = None,
) -> Floats:
    """(questions,) the share of a question's sampled answers that are the demonstration's, word for word.

    Temperature 0 is greedy decoding. Above it the whole distribution is sampled (no top-k, no top-p); the result then
    depends on `seed`, `batch_size` and the order of the questions. The global random state is left as it was.

    Args:
        description: shown beside a progress bar; None shows none.
    """
    sampling: dict[str, Any] = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    decoding = GenerationConfig(
        max_new_tokens=max(question.answer_tokens for question in asked) + 1,
        do_sample=temperature > 0,
        **sampling,
        eos_token_id=sorted(end_tokens),
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    right = np.zeros(len(asked))
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    bar = tqdm(
        total=samples * len(asked), desc=description, disable=description is None, leave=False, unit="answer"
    )
    try:
        with bar, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for _ in range(samples):
                for first in range(0, len(asked), batch_size):
                    batch = asked[first : first + batch_size]
                    ids, mask = _left_padded([question.prompt_ids for question in batch], tokenizer)
                    written = model.generate(  # type: ignore[operator]
                        input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=decoding
                    )
                    for place, answer in enumerate(written[:, ids.shape[1] :].tolist(), start=first):
                        text = answer_text(tokenizer, answer, end_tokens)
                        right[place] += text == asked[place].answer
                    bar.update(len(batch))
    finally:
        model.train(was_training)
    return right / samples


def _left_padded(
    prompts: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, time) ids and mask; every prompt ends where its answer begins."""
    time = max(map(len, prompts))
    ids = torch.full((len(prompts), time), int(tokenizer.pad_token_id))
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, time - len(prompt) :] = torch.tensor(prompt)
        mask[row, time - len(prompt) :] = 1
    return ids, mask
