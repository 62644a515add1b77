"""Requests answered by vLLM in this process: the prompts and settings of transformers_backend, faster on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.errors import ConfigError, ModelError
from holdfast.evaluation.answers.client import Reply, Usage
from holdfast.evaluation.answers.generation import Fail, Keep, Request
from holdfast.evaluation.answers.generation_prompts import Prompt, PromptMaker
from holdfast.evaluation.answers.identity import model_identity
from holdfast.models.loading import load_tokenizer, read_config, require_weights


class VllmGenerator:
    """A `Generator` that is a model in vLLM. It draws by its own rules: the answers are not those of transformers.

    Args:
        name: a folder or a hub name.
        context: tokens of prompt and answer together; None for what the model's configuration says.
        together: requests handed over at once, and kept together. vLLM batches within them as memory allows.
        engine: further arguments of `vllm.LLM`, such as `{"tensor_parallel_size": 2}`.

    Raises:
        ConfigError: `together` below 1.
        ModelError: vLLM is not installed, or the model cannot be used.
    """

    def __init__(
        self,
        name: str,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        context: int | None = None,
        together: int = 256,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        engine: Mapping[str, Any] | None = None,
    ) -> None:
        if together < 1:
            raise ConfigError(f"together must be at least 1, not {together}")
        try:
            import vllm
        except ImportError as error:
            raise ModelError(
                "vLLM is not installed: pip install 'holdfast[vllm]', or take the backend 'transformers'"
            ) from error
        require_weights(name)
        config = read_config(name, revision=revision).get_text_config()
        context = context or getattr(config, "max_position_embeddings", None)
        self._name = name
        self._identity = model_identity(
            name,
            revision=revision,
            dtype=dtype,
            chat_template=chat_template,
            chat_template_kwargs=chat_template_kwargs,
        )
        self._together = together
        tokenizer = load_tokenizer(name, revision=revision, chat_template=chat_template)
        self._prompt = PromptMaker(tokenizer, context, chat_template_kwargs)
        self._vllm = vllm
        self._engine = vllm.LLM(
            model=name, revision=revision, dtype=dtype, max_model_len=context, **(engine or {})
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
        """See `Generator`. Prompts that the model cannot read fail, as in `TransformersGenerator`."""
        prompts = self._prompt.readable(requests, fail)
        for start in range(0, len(prompts), self._together):
            batch = prompts[start : start + self._together]
            outputs = self._engine.generate(
                [{"prompt_token_ids": prompt.tokens} for prompt in batch],
                [self._sampling(prompt) for prompt in batch],
                use_tqdm=False,
            )
            for prompt, output in zip(batch, outputs, strict=True):
                answer = output.outputs[0]
                usage = Usage(len(prompt.tokens), len(answer.token_ids))
                keep(prompt.request, Reply(answer.text, self._name, usage, answer.finish_reason))

    def _sampling(self, prompt: Prompt) -> Any:
        """Every setting that counts is said, so that none comes from the model's generation_config."""
        settings = prompt.request.settings
        return self._vllm.SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=prompt.most,
            seed=settings.seed,
            stop=list(settings.stop),
        )
