"""Requests answered by a model in this process, in batches, none of which changes what another answers.

The likeliest token is taken, or one is drawn by a number that belongs to the request and the place in its answer alone:
the same seed gives the same answer in any batch and order, as far as the model computes the same there. In float32,
batches of other sizes differ in the last digits of a logit, which decides between tokens that are that near a tie
alone; in half precision this is more often so.

Of the model's generation_config, the tokens that end an answer count, and nothing else: no penalty, no top-k.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Self

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from holdfast.errors import ConfigError, ModelError
from holdfast.evaluation.answers.client import Reply, Settings, Usage
from holdfast.evaluation.answers.generation import Fail, Keep, Request
from holdfast.evaluation.answers.generation_prompts import Prompt, PromptMaker
from holdfast.evaluation.answers.identity import model_identity
from holdfast.models.loading import load_model, load_tokenizer, require_embedded

logger = logging.getLogger(__name__)


class TransformersGenerator:
    """A `Generator` that is a model of transformers.

    Args:
        model: a causal LM; it answers where it is.
        batch_size: conversations answered together; halved for good where memory runs out.
        chat_template_kwargs: inputs of the chat template, such as `{"enable_thinking": False}`.
        name: for records; by default the folder or hub name that the model was loaded from.
        identity: see `Generator`; by default the name, which does not tell a model from what it becomes by training.

    Raises:
        ConfigError: no batch size.
        ModelError: nothing says where an answer ends, or the tokenizer is another model's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 16,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
        identity: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
        require_embedded(tokenizer, model.get_input_embeddings().weight.shape[0])
        self.batch_size = batch_size
        self._model = model
        self._tokenizer = tokenizer
        self._name = name or model.config.name_or_path or type(model).__name__
        self._identity = identity or self._name
        self._ends = _end_tokens(model, tokenizer)
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._prompt = PromptMaker(tokenizer, context, chat_template_kwargs)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int = 16,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """From a folder or a hub name; see `load_model` and `load_tokenizer`.

        Args:
            device: None for a GPU where there is one.
        """
        model = load_model(name, revision=revision, dtype=dtype)
        tokenizer = load_tokenizer(name, revision=revision, chat_template=chat_template)
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        identity = model_identity(
            name,
            revision=revision,
            dtype=dtype,
            chat_template=chat_template,
            chat_template_kwargs=chat_template_kwargs,
        )
        return cls(
            model,
            tokenizer,
            batch_size=batch_size,
            chat_template_kwargs=chat_template_kwargs,
            name=name,
            identity=identity,
        )

    @property
    def model(self) -> str:
        """Its name."""
        return self._name

    @property
    def identity(self) -> str:
        """See `Generator`."""
        return self._identity

    def answer(self, requests: Sequence[Request], keep: Keep, fail: Fail) -> None:
        """See `Generator`. The longest prompts go first: what does not fit in memory shows at once.

        An answer ends with the model's context at the latest, as one that is cut at `max_tokens` does. A prompt that
        leaves no room for one token fails.

        Raises:
            DataError: the tokenizer has no chat template.
            ConfigError: a setting that is a server's, or draws without a seed.
            ModelError: one conversation alone does not fit in memory.
        """
        prompts = self._prompt.readable(requests, fail)
        # Together only where they stop alike: then no answer is longer or shorter for its batch.
        prompts.sort(key=lambda p: (p.most, p.request.settings.stop, len(p.tokens)), reverse=True)
        with self._answering():
            for (most, stop), group in groupby(prompts, key=lambda p: (p.most, p.request.settings.stop)):
                alike = list(group)
                while alike:
                    batch = alike[: self.batch_size]
                    replies = self._replies(batch, most, stop)
                    if replies is None:
                        continue  # in a smaller batch
                    for prompt, reply in zip(batch, replies, strict=True):
                        keep(prompt.request, reply)
                    alike = alike[len(batch) :]

    def _replies(self, batch: Sequence[Prompt], most: int, stop: tuple[str, ...]) -> list[Reply] | None:
        """The answers to a batch; None where it does not fit in memory, and `batch_size` is halved."""
        try:
            return self._generate(batch, most, stop)
        except RuntimeError as error:
            if not (isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)):
                raise
            if len(batch) == 1:
                raise ModelError(
                    f"one conversation of {len(batch[0].tokens)} tokens, and {most} to answer, does not fit in memory: "
                    "lower max_tokens, or load the model in half precision"
                ) from None  # its traceback would keep the memory
        self.batch_size = len(batch) // 2
        logger.warning(
            "a batch does not fit in memory: from here on %d conversations at once", self.batch_size
        )
        gc.collect()
        clear_device_cache()
        return None

    def _generate(self, batch: Sequence[Prompt], most: int, stop: tuple[str, ...]) -> list[Reply]:
        device = self._model.device
        longest = max(len(prompt.tokens) for prompt in batch)
        pad = self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else self._ends[0]
        # Padding stands on the left: every prompt ends where its answer begins.
        padding = [longest - len(prompt.tokens) for prompt in batch]
        tokens = [[pad] * n + prompt.tokens for n, prompt in zip(padding, batch, strict=True)]
        mask = [[0] * n + [1] * len(prompt.tokens) for n, prompt in zip(padding, batch, strict=True)]
        draws = [prompt.request.settings for prompt in batch]
        written: Any = self._model.generate(
            input_ids=torch.tensor(tokens, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=GenerationConfig(
                max_new_tokens=most,
                do_sample=False,  # the processor draws
                eos_token_id=self._ends,
                pad_token_id=pad,
                use_cache=True,
                stop_strings=list(stop) or None,
            ),
            logits_processor=LogitsProcessorList([Draws(draws, most, longest, device)]),
            tokenizer=self._tokenizer if stop else None,
        )
        answers: list[list[int]] = written[:, longest:].tolist()
        return [self._reply(prompt, answer, stop, pad) for prompt, answer in zip(batch, answers, strict=True)]

    def _reply(self, prompt: Prompt, answer: list[int], stop: tuple[str, ...], pad: int) -> Reply:
        """The answer before its end token, or before a text that ends it."""
        end = next((at for at, token in enumerate(answer) if token in self._ends), None)
        if stop and end is None:  # where a text has ended it before others of its batch, padding follows
            answer = answer[: next((at + 1 for at in reversed(range(len(answer))) if answer[at] != pad), 0)]
        ended = end is not None or len(answer) < prompt.most
        usage = Usage(len(prompt.tokens), len(answer) if end is None else end + 1)
        text = str(
            self._tokenizer.decode(answer[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )
        cuts = [at for at in map(text.find, stop) if at >= 0]
        if cuts:
            text, ended = text[: min(cuts)], True
        return Reply(text, self._name, usage, "stop" if ended else "length")

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """The model as it must be to answer, and then as it was."""
        training, config = self._model.training, self._model.generation_config
        self._model.eval()
        # `generate` would fill in from here what ours leaves open
        self._model.generation_config = GenerationConfig()
        try:
            with torch.inference_mode():
                yield
        finally:
            self._model.generation_config = config
            self._model.train(training)


class Draws(LogitsProcessor):
    """Leaves one token of each row: the likeliest, or the one that the row's own number draws.

    The tokens lie end to end on a line, in the vocabulary's order, each as long as its probability at the row's
    temperature; the number is a point on it. That order stays where rounding swaps the ranks of two tokens. `top_p`
    leaves the likeliest tokens that have this mass together, and those as likely as the last of them.

    Args:
        settings: of each row; a seed is needed where the temperature is above 0.
        most: tokens of an answer.
        prompt: columns before the answers.

    Raises:
        ConfigError: draws without a seed.
    """

    def __init__(
        self, settings: Sequence[Settings], most: int, prompt: int, device: torch.device | str = "cpu"
    ) -> None:
        self._prompt = prompt
        self._drawn = [at for at, own in enumerate(settings) if own.temperature > 0]
        points = []
        for at in self._drawn:
            seed = settings[at].seed
            if seed is None:
                raise ConfigError(
                    "a temperature above 0 needs a seed: without one, the answer would be another each time"
                )
            points.append(
                torch.rand(most, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            )
        if self._drawn:
            drawn = [settings[at] for at in self._drawn]
            # (drawn rows, answer's tokens) in [0, 1)
            self._points = torch.stack(points).to(device)
            self._temperature = torch.tensor(
                [[s.temperature] for s in drawn], device=device, dtype=torch.float64
            )
            self._top_p = torch.tensor([[s.top_p] for s in drawn], device=device, dtype=torch.float64)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(rows, vocabulary) logits -> 0 at the token of each row, and -inf elsewhere."""
        chosen = scores.argmax(-1)
        if self._drawn:
            chosen[self._drawn] = self._draw(scores[self._drawn].double(), input_ids.shape[1] - self._prompt)
        left = torch.full_like(scores, -torch.inf)
        return left.scatter(-1, chosen[:, None], 0.0)

    def _draw(self, logits: Tensor, step: int) -> Tensor:
        """(drawn rows, vocabulary) logits -> (drawn rows,) tokens."""
        chances = (logits / self._temperature).softmax(-1)
        if bool((self._top_p < 1).any()):
            ordered = chances.sort(-1, descending=True).values
            # The first token whose end reaches top_p is the last one kept; float64 sums end near 1, and not at it.
            last = (ordered.cumsum(-1) < self._top_p).sum(-1, keepdim=True).clamp(max=ordered.shape[-1] - 1)
            chances = chances.where(chances >= ordered.gather(-1, last), 0.0)
        line = chances.cumsum(-1)
        # Below the line's end: a double below 1, times another, is below that one.
        point = self._points[:, step : step + 1] * line[:, -1:]
        return torch.searchsorted(line, point, right=True)[:, 0]


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the generation_config's, or the tokenizer's where it names none."""
    config = model.generation_config
    ends = config.eos_token_id if config is not None else None
    if ends is None:
        ends = tokenizer.eos_token_id
    if ends is None:
        raise ModelError(
            "neither the model's generation_config nor its tokenizer has an end token (`eos_token_id`), so no answer "
            "would end: set one"
        )
    return [ends] if isinstance(ends, int) else list(ends)
