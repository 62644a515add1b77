"""A request -> the tokens that a model reads, and how far it may answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from holdfast.data.faults import RowFault
from holdfast.data.records import SFTRecord
from holdfast.data.rendering import ChatRenderer
from holdfast.errors import ConfigError
from holdfast.evaluation.answers.client import CallError
from holdfast.evaluation.answers.generation import Fail, Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Prompt(NamedTuple):
    """A request as a model reads it.

    Attributes:
        tokens: of the whole conversation, up to where the answer begins.
        most: tokens of the answer: what was asked for, or what the model's context leaves.
    """

    request: Request
    tokens: list[int]
    most: int


class PromptMaker:
    """Renders conversations by the tokenizer's chat template.

    Args:
        context: tokens that the model can hold, prompt and answer together; None where it has no such bound.
        chat_template_kwargs: inputs of the chat template, such as `{"enable_thinking": False}`.

    Raises:
        ConfigError: inputs of the template that are arguments of the tokenizer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        context: int | None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.context = context
        self._chat = ChatRenderer(tokenizer, chat_template_kwargs=chat_template_kwargs)

    def __call__(self, request: Request) -> Prompt:
        """The prompt of a request.

        Raises:
            CallError: the template refuses the conversation, or it leaves no room for one token.
            ConfigError: a setting that is a server's.
            DataError: there is no chat template.
        """
        settings = request.settings
        if settings.extra:
            raise ConfigError(
                f"extra: '{next(iter(settings.extra))}' is for servers; a model here has no such setting"
            )
        messages = [dict(message) for message in request.messages]
        record = SFTRecord("", messages, completion_start=len(messages), where=repr(request.key))
        try:
            text = self._chat.render(messages, record, add_generation_prompt=True)
        except RowFault as fault:
            raise CallError("template", fault.detail, of_request=True) from fault
        tokens = self._chat.tokenize([text])[0]
        room = settings.max_tokens if self.context is None else self.context - len(tokens)
        if room < 1:
            raise CallError(
                "too long",
                f"the prompt has {len(tokens)} tokens, which leaves no room in the model's context of {self.context}",
                of_request=True,
            )
        return Prompt(request, tokens, min(settings.max_tokens, room))

    def readable(self, requests: Sequence[Request], fail: Fail) -> list[Prompt]:
        """The prompts of the requests that can be answered; `fail` is told of the others.

        Raises:
            ConfigError, DataError: as a call.
        """
        prompts = []
        for request in requests:
            try:
                prompts.append(self(request))
            except CallError as error:
                fail(request, error)
        return prompts
