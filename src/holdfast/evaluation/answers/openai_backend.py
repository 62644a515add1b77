"""Requests answered by a server: one thread a call under way."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from holdfast.evaluation.answers.client import CallError, ChatClient
from holdfast.evaluation.answers.generation import Fail, Keep, Request

logger = logging.getLogger(__name__)


class ServerGenerator:
    """A `Generator` that asks a server, as many requests at once as its client allows."""

    def __init__(self, client: ChatClient) -> None:
        self.client = client

    @property
    def model(self) -> str:
        """The name that the server was asked for."""
        return self.client.model

    @property
    def identity(self) -> str:
        """The same: a server says no more of its model."""
        return self.client.model

    def answer(self, requests: Sequence[Request], keep: Keep, fail: Fail) -> None:
        """See `Generator`. What is under way when something raises, or at an interrupt, is paid for, and still kept."""
        if not requests:
            return
        stopped = threading.Event()

        def work(request: Request) -> None:
            if stopped.is_set():
                return
            try:
                try:
                    reply = self.client.ask(request.messages, request.settings)
                except CallError as error:
                    fail(request, error)
                else:
                    keep(request, reply)
            except BaseException:
                stopped.set()  # at once: nothing more is paid for
                raise

        with ThreadPoolExecutor(min(self.client.concurrency, len(requests))) as pool:
            futures = [pool.submit(work, request) for request in requests]
            try:
                for future in as_completed(futures):
                    future.result()
            except KeyboardInterrupt:
                stopped.set()
                logger.warning("calls under way are paid for, and waited for; the same again ends at once")
                raise
