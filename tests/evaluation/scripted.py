"""A generator that answers from a table, as a model or a server would."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from holdfast.evaluation.answers.client import CallError, Reply
from holdfast.evaluation.answers.generation import Fail, Keep, Request

Script = Callable[[Request], str | None]


class Scripted:
    """Answers what `script` says of a request; None is a failure of that request. `asked` counts the requests."""

    model = identity = "scripted"

    def __init__(self, script: Script, *, finish_reason: str = "stop") -> None:
        self._script = script
        self._finish_reason = finish_reason
        self.asked = 0

    def answer(self, requests: Sequence[Request], keep: Keep, fail: Fail) -> None:
        for request in requests:
            self.asked += 1
            text = self._script(request)
            if text is None:
                fail(request, CallError("refused", "the request was refused", of_request=True))
            else:
                keep(request, Reply(text, self.model, None, self._finish_reason))
