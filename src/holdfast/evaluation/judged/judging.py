"""Asking a judge for what is not there yet, and reading what is: replies in a journal, keyed by what was asked."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from holdfast.evaluation.answers.client import Reply
from holdfast.evaluation.answers.client_settings import Settings
from holdfast.evaluation.answers.generation import Generator, Request, collect
from holdfast.evaluation.answers.journal import Journal
from holdfast.evaluation.judged.assets import content_hash

REPLIES, FAILURES = "judge_replies.jsonl", "failures.jsonl"


@dataclass(frozen=True)
class Judge:
    """Who judges.

    Attributes:
        model: the name that is asked for; it stands in the judgment files.
        settings: of decoding.
        generator: that asks it; None: nothing is asked, what is on the disk is read.
    """

    model: str
    settings: Settings
    generator: Generator | None = None

    def request(self, messages: Sequence[Mapping[str, str]], *place: str | int) -> Request:
        """A request at a place (question, prompt, turn, ...).

        Its key holds a hash of everything that is sent: a reply belongs to one text alone, so answers that were
        written anew, other prompts or settings are asked again, in the same folder.
        """
        asked = content_hash([self.model, [dict(m) for m in messages], self.settings.as_dict()])
        return Request((*place, asked[:20]), [dict(m) for m in messages], self.settings)


@dataclass
class Replies:
    """What the judge said, by a request's key.

    Attributes:
        texts: of the replies.
        times: seconds since 1970, when each came.
        served: names that the server gave, with how often.
        cut: keys of replies that ended at the limit of tokens.
        failed: keys without a reply, and why.
        asked: how many were paid for now.
        imported: how many came out of a judgment file once (see `adopt`).
    """

    texts: dict[Any, str] = field(default_factory=dict)
    times: dict[Any, float] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)
    cut: list[Any] = field(default_factory=list)
    failed: dict[Any, str] = field(default_factory=dict)
    asked: int = 0
    imported: int = 0


def gather(judge: Judge, requests: Sequence[Request], folder: Path) -> Replies:
    """The replies to these requests: from the folder's journal, and, where the judge can be asked, from it.

    Each reply is on the disk before its worker asks the next. What fails is in `failures.jsonl`.

    Raises:
        DataError: the journal holds what is no row.
        FolderInUse: another process judges in this folder.
        CallError: the judge cannot be reached at all.
    """
    path = folder / REPLIES
    if judge.generator is None and not path.exists():
        return Replies(failed={request.key: "not asked: nothing is paid for here" for request in requests})
    found = Replies()
    with Journal(path, key=lambda row: tuple(row["key"])) as journal:
        before = len(journal)
        if judge.generator is not None:
            collected = collect(judge.generator, requests, journal, folder / FAILURES, row_of=_row)
            found.failed.update(collected.failed)
        found.asked = len(journal) - before
        for request in requests:
            row = journal.get(request.key)
            if row is None:
                found.failed.setdefault(request.key, "not asked: nothing is paid for here")
                continue
            found.texts[request.key] = row["text"]
            found.times[request.key] = row["tstamp"]
            found.imported += row["imported"]
            if row["served"] is not None:
                found.served[row["served"]] = found.served.get(row["served"], 0) + 1
            if row["finish_reason"] == "length":
                found.cut.append(request.key)
    return found


def served_otherwise(judge: Mapping[str, Any]) -> list[str]:
    """What a server says it is, where that is not what was asked for; a dated version (`gpt-4-0613`) is."""
    others = [name for name in judge.get("served", {}) if not name.startswith(judge["asked"])]
    return [f"the server of {judge['asked']} says that it is {', '.join(sorted(others))}"] if others else []


def _row(request: Request, reply: Reply, _digest: str) -> dict[str, Any]:
    return {
        "key": list(request.key),
        "text": reply.text,
        "served": reply.model,
        "finish_reason": reply.finish_reason,
        "usage": None if reply.usage is None else asdict(reply.usage),
        "tstamp": time.time(),
        "imported": False,
    }


def adopt(replies: Sequence[tuple[Request, str, float]], folder: Path) -> None:
    """Put (request, reply, time) of somebody's judgment file into the folder's journal: they are not paid for again.

    What served them, and under which settings, such files do not say.
    """
    if not replies:
        return
    with Journal(folder / REPLIES, key=lambda row: tuple(row["key"])) as journal:
        for request, text, tstamp in replies:
            if not journal.has(request.key):
                unknown = {"served": None, "finish_reason": None, "usage": None}
                journal.add(
                    {"key": list(request.key), "text": text, **unknown, "tstamp": tstamp, "imported": True}
                )


def unpaid(requests: Sequence[Request], folder: Path) -> list[Request]:
    """The requests that the folder's journal has no reply to."""
    path = folder / REPLIES
    if not path.exists():
        return list(requests)
    with Journal(path, key=lambda row: tuple(row["key"])) as journal:
        return [request for request in requests if not journal.has(request.key)]
