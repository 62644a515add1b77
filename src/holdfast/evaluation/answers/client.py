"""A client of any server that speaks OpenAI's chat completions: bounded in time, memory, money and persistence.

The key is read from the environment, and stands nowhere else: in no record, message or address.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self
from urllib.parse import SplitResult, urlsplit

import httpx2

from holdfast.errors import ConfigError
from holdfast.evaluation.answers.client_reply import (
    CallError,
    Reply,
    Usage,
    blanked,
    parse_reply,
    require_success,
)
from holdfast.evaluation.answers.client_settings import Deadlines, Retries, Settings

__all__ = ["CallError", "ChatClient", "Deadlines", "Reply", "Retries", "Settings", "Usage"]

logger = logging.getLogger(__name__)

LARGEST = 1 << 24  # bytes of an answer: far more than any judgment
MOST_AT_ONCE = 256
LONGEST_NAME = 40  # characters of a variable's name; keys are longer, as a rule
ENDPOINT = "/chat/completions"
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
CLOSING = 10.0  # seconds that open connections may take to close


class ChatClient:
    """Asks a server, as a context manager or until `close`. Safe for threads.

    Args:
        base_url: of the server's API, such as `https://api.openai.com/v1` or `http://localhost:8000`; `/v1` is added
            where there is no path.
        model: the name that the server knows it by.
        api_key_env: the name of the environment variable that holds the key; None for a server that wants none.
        concurrency: calls under way at once, 1 to 256; further ones wait.
        largest: bytes of an answer; a larger one is broken off.

    Raises:
        ConfigError: an address that is none, or holds a password; a variable that is not set.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str | None = None,
        concurrency: int = 8,
        deadlines: Deadlines | None = None,
        retries: Retries | None = None,
        largest: int = LARGEST,
    ) -> None:
        if not 1 <= concurrency <= MOST_AT_ONCE:
            raise ConfigError(f"concurrency must be 1 to {MOST_AT_ONCE}, not {concurrency}")
        address = _address(base_url)
        self.url = address.geturl()
        self.model = model
        self.concurrency = concurrency
        self.deadlines = deadlines or Deadlines()
        self.retries = retries or Retries()
        self.largest = largest
        self.repeated = 0  # attempts that failed and are made again
        self._key_env = api_key_env
        self._key = _key_from(api_key_env)
        if self._key and address.scheme == "http" and address.hostname not in LOCAL:
            logger.warning("the key goes to %s unencrypted: anyone on the way can read it", address.hostname)
        self._random = random.Random()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="holdfast-calls", daemon=True)
        self._slots = asyncio.Semaphore(concurrency)
        self._http = httpx2.AsyncClient(
            headers={"Accept-Encoding": "identity", "User-Agent": "holdfast"},
            timeout=httpx2.Timeout(self.deadlines.read, connect=self.deadlines.connect, pool=None),
            limits=httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            follow_redirects=False,
            # A proxy that the environment names cannot reach what is here.
            trust_env=address.scheme == "https" or address.hostname not in LOCAL,
        )
        self._thread.start()

    def ask(self, messages: Sequence[Mapping[str, Any]], settings: Settings) -> Reply:
        """The answer to a conversation, tried as often as `retries` says; blocks until it is there.

        Raises:
            CallError: there is none.
        """
        if not self._thread.is_alive():
            raise ValueError("the client is closed")
        body = {"model": self.model, "messages": list(messages), **settings.body()}
        content = json.dumps(body, allow_nan=False).encode()
        call: Future[Reply] = asyncio.run_coroutine_threadsafe(self._ask(content), self._loop)
        try:
            return call.result()
        except BaseException:
            call.cancel()  # where the one who waits was interrupted
            raise

    def close(self) -> None:
        """End what is under way, and let the connections go."""
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(CLOSING)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSING)
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._http.aclose()

    async def _ask(self, content: bytes) -> Reply:
        async with self._slots:
            for failed in range(1, self.retries.attempts + 1):
                try:
                    return await self._attempt(content)
                except CallError as error:
                    if not error.passing:
                        raise
                    if failed == self.retries.attempts:
                        raise CallError(
                            error.reason, f"{error} (tried {failed} times)", passing=True
                        ) from None
                    if error.wait is not None and error.wait > self.retries.longest_asked:
                        raise CallError(
                            error.reason,
                            f"{error}; it asks to be left alone for {error.wait:.0f} seconds: run again then",
                        ) from None
                    wait = self.retries.wait(failed, error.wait, self._random.random())
                    logger.info("%s; asked again in %.1f seconds", error, wait)
                    self.repeated += 1
                    await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, content: bytes) -> Reply:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        total = self.deadlines.total
        try:
            async with (
                asyncio.timeout(total),
                self._http.stream("POST", self.url, content=content, headers=headers) as response,
            ):
                answer = await self._content(response)
        except TimeoutError:
            detail = f"no whole answer within {total:g} seconds"
            raise CallError("deadline", detail, passing=True) from None
        except httpx2.TimeoutException as error:
            detail = f"the server was silent for too long ({type(error).__name__})"
            raise CallError("deadline", detail, passing=True) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            detail = blanked(f"the connection failed ({type(error).__name__}: {error})", self._key)
            raise CallError("connection", detail, passing=True) from None
        headers = {k.lower(): v for k, v in response.headers.items()}
        try:
            require_success(response.status_code, headers, answer, self._key)
        except CallError as error:
            if response.status_code not in (401, 403):
                raise
            whence = f"the key in the environment variable {self._key_env}" if self._key else "no key"
            raise CallError(error.reason, f"{error} (it was sent {whence})") from None
        return parse_reply(answer, self._key)

    async def _content(self, response: httpx2.Response) -> bytes:
        """The body, as it came: what is packed can be any size once unpacked, and was not asked for.

        Raises:
            CallError: it is packed, or too large.
        """
        if response.headers.get("content-encoding", "identity") != "identity":
            raise CallError("packed", "the answer is packed (Content-Encoding), which was not asked for")
        parts: list[bytes] = []
        size = 0
        async for part in response.aiter_raw():
            size += len(part)
            if size > self.largest:
                raise CallError("too large", f"the answer has more than {self.largest} bytes")
            parts.append(part)
        return b"".join(parts)


def _address(base_url: str) -> SplitResult:
    """Where calls go. What is refused is not repeated where it may hold a password."""
    try:
        parts = urlsplit(base_url.strip())
        host, _ = parts.hostname, parts.port  # looks at the number too
    except ValueError:
        raise ConfigError("the server's address cannot be read; it looks like https://HOST:PORT/v1") from None
    if "@" in base_url:  # wherever it stands: without a scheme, it is taken for a path
        raise ConfigError(
            "the server's address holds a name or password: leave it out, and name the environment variable that "
            "holds the key"
        )
    if parts.query or parts.fragment:
        raise ConfigError("the server's address must end with its path: nothing behind '?' or '#'")
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"the server's address must look like https://HOST:PORT/v1, not '{base_url}'")
    path = parts.path.rstrip("/").removesuffix(ENDPOINT)
    return parts._replace(path=(path or "/v1") + ENDPOINT)


def _key_from(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", variable) or len(variable) > LONGEST_NAME:
        # not repeated: it may be the key itself
        raise ConfigError("give the name of the environment variable that holds the key, not the key")
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"the environment variable {variable}, which is to hold the key, is not set")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(
            f"the environment variable {variable} holds characters that no key has (spaces, line breaks, accents)"
        )
    return key
