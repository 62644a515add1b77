"""Who answers, as the command line has it: a model here, in vLLM, or on a server."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.errors import ConfigError

if TYPE_CHECKING:
    from holdfast.evaluation.answers.client_settings import Deadlines, Retries
    from holdfast.evaluation.answers.generation import Generator


@dataclass(frozen=True)
class Answerer:
    """The options that say who answers.

    Raises:
        ConfigError: a server without its address, or an address without `--backend server`.
    """

    model: str
    backend: str
    model_url: str | None
    model_key_env: str | None
    concurrency: int
    batch_size: int
    dtype: str
    chat_template: str | None = None
    deadlines: Deadlines | None = None
    retries: Retries | None = None

    def __post_init__(self) -> None:
        if (self.backend == "server") != (self.model_url is not None):
            raise ConfigError("a server is asked with --backend server and --model-url, both")

    def identity(self) -> str:
        """The `identity` of what `open` gives; no weight is loaded."""
        if self.backend == "server":
            return self.model
        from holdfast.evaluation.answers.identity import model_identity

        return model_identity(self.model, dtype=self.dtype, chat_template=self.chat_template)

    def open(self, stack: ExitStack) -> Generator:
        """What answers, and says how far it is, until the stack is left."""
        from holdfast.cli.eval_progress import watched

        return watched(self._opened(stack), "answers")

    def _opened(self, stack: ExitStack) -> Generator:
        if self.model_url is not None:
            from holdfast.evaluation.answers.client import ChatClient
            from holdfast.evaluation.answers.openai_backend import ServerGenerator

            client = ChatClient(
                self.model_url,
                self.model,
                api_key_env=self.model_key_env,
                concurrency=self.concurrency,
                deadlines=self.deadlines,
                retries=self.retries,
            )
            return ServerGenerator(stack.enter_context(client))
        if self.backend == "vllm":
            from holdfast.evaluation.answers.vllm_backend import VllmGenerator

            return VllmGenerator(self.model, dtype=self.dtype, chat_template=self.chat_template)
        from holdfast.cli.quiet import quiet_libraries

        quiet_libraries()
        from holdfast.evaluation.answers.transformers_backend import TransformersGenerator

        return TransformersGenerator.load(
            self.model, dtype=self.dtype, batch_size=self.batch_size, chat_template=self.chat_template
        )
