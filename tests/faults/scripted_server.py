"""A server of chat completions that does what a script says, on this machine: answers, faults and worse."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

PIECE = b"x" * 65536


class Handler(BaseHTTPRequestHandler):
    """One request. `server.script` says what to do with it."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        """Note what was asked, and do what the script says."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(content)
        owner = self.server.owner
        with owner.guard:
            owner.asked.append(body)
            owner.keys.append(self.headers.get("Authorization"))
            owner.under_way += 1
            owner.most_at_once = max(owner.most_at_once, owner.under_way)
        try:
            owner.script(body)(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with owner.guard:
                owner.under_way -= 1

    def send(self, content: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
        """A whole answer in one write; `length`: what it claims to have."""
        lines = [f"HTTP/1.1 {status} said", f"Content-Length: {len(content) if length is None else length}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1") + content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    owner: ScriptedServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of the tests."""


Act = Callable[[Handler], None]
Script = Callable[[Mapping[str, Any]], Act]


class ScriptedServer:
    """Serves until it is left.

    Attributes:
        asked: the bodies that came, in order.
        keys: what came as `Authorization` with each.
        most_at_once: requests that were under way together, at most.
        sent: bytes of endless answers.
        ended: set when it is left, for what waits.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.guard = threading.Lock()
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.under_way = self.most_at_once = self.sent = 0
        self.ended = threading.Event()
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.owner = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()


def question_of(body: Mapping[str, Any]) -> str:
    """What was asked last."""
    return str(body["messages"][-1]["content"])


def verdict(question: str) -> str:
    """A judge's words on a question: the same ones each time."""
    return f"It is so because of {question}. Rating: [[{blake2b(question.encode()).digest()[0] % 10 + 1}]]"


def completion(text: str | None, **message: Any) -> bytes:
    """The body of a chat completion."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, **message},
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    return json.dumps({"model": "judge-0613", "choices": [choice], "usage": usage}).encode()


def judge(body: Mapping[str, Any]) -> Act:
    """The script of a server without faults."""
    return send(completion(verdict(question_of(body))))


# --- what a server can do ------------------------------------------------------------------------------


def send(content: bytes, status: int = 200, **headers: str) -> Act:
    """Answer with this body."""
    return lambda handler: handler.send(content, status, **headers)


def cut(content: bytes) -> Act:
    """Claim the whole body, send half of it, and hang up."""

    def act(handler: Handler) -> None:
        handler.send(content[: len(content) // 2], length=len(content))
        handler.close_connection = True

    return act


def reset(handler: Handler) -> None:
    """Break the connection off without an answer, as a crash does."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def hang(handler: Handler) -> None:
    """Say nothing, and keep the connection."""
    handler.server.owner.ended.wait()


def drip(head: bytes, byte: bytes, every: float) -> Act:
    """Send `head` and then one byte after another, without an end."""

    def act(handler: Handler) -> None:
        handler.wfile.write(head)
        while not handler.server.owner.ended.wait(every):
            handler.wfile.write(byte)

    return act


def pour(head: bytes, size: int | None) -> Act:
    """Send `head` and then so many bytes, as fast as they are taken; None: without an end."""

    def act(handler: Handler) -> None:
        owner = handler.server.owner
        handler.wfile.write(head)
        left = size
        while not owner.ended.is_set() and (left is None or left > 0):
            handler.wfile.write(PIECE)
            with owner.guard:
                owner.sent += len(PIECE)
            left = None if left is None else left - len(PIECE)

    return act
