"""Asking a judge for what is not there yet, and reading what is: replies in a journal, keyed by what was asked."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from holdfast.evaluation.answers.client import Reply
from holdfast.evaluation.answers.client_settings import Settings
from holdfast.evaluation.answers.generation import Generator, Request, collect
from holdfast.evaluation.answers.journal import Journal
from holdfast.evaluation.judged.assets import content_hash

REPLIES, FAILURES = "judge_replies.jsonl", "failures.jsonl"

Known = tuple[Request, str, float]  # a reply that a judgment file holds, and when it came


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


def gather(judge: Judge, requests: Sequence[Request], folder: Path, known: Sequence[Known] = ()) -> Replies:
    """The replies to these requests: from the folder's journal, and, where the judge can be asked, from it.

    Each reply is on the disk before its worker asks the next. What fails is in `failures.jsonl`.

    Args:
        known: what judgment files hold. It goes into the journal first (see `adopt`); where nobody can be asked, it is
            read and nothing is written.

    Raises:
        DataError: the journal holds what is no row.
        FolderInUse: another process judges in this folder.
        CallError: the judge cannot be reached at all.
    """
    path = folder / REPLIES
    found = Replies()
    if judge.generator is not None:
        adopt(known, folder)
    elif not path.exists():
        _take(found, requests, _adoptable(known, ()).get)
        return found
    with Journal(path, key=lambda row: tuple(row["key"])) as journal:
        told = _adoptable(known, journal.rows())
        before = len(journal)
        if judge.generator is not None:
            collected = collect(judge.generator, requests, journal, folder / FAILURES, row_of=_row)
            found.failed.update(collected.failed)
        found.asked = len(journal) - before
        _take(found, requests, lambda key: journal.get(key) or told.get(key))
    return found


def _take(
    found: Replies, requests: Sequence[Request], row_of: Callable[[Any], Mapping[str, Any] | None]
) -> None:
    for request in requests:
        row = row_of(request.key)
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


def served_otherwise(judge: Mapping[str, Any], official: Sequence[str] = ()) -> list[str]:
    """What a server says it is, where that is not what was asked for.

    The same name with a date (`gpt-4-0613`, `gpt-4o-2024-08-06`) is; with anything else (`gpt-4o-mini`) it is another.

    Args:
        official: the judges of a benchmark; where one of them is asked for, one of them must have served.
    """
    asked = judge["asked"]
    same = re.compile(re.escape(asked) + r"(-[0-9]{4}|-[0-9]{4}-[0-9]{2}-[0-9]{2})?")
    others = [
        name
        for name in judge.get("served", {})
        if not same.fullmatch(name) or (asked in official and name not in official)
    ]
    return [f"the server of {asked} says that it is {', '.join(sorted(others))}"] if others else []


def _row(request: Request, reply: Reply, _digest: str) -> dict[str, Any]:
    return {
        "key": list(request.key),
        "text": reply.text,
        "served": reply.model,
        "finish_reason": reply.finish_reason,
        "usage": None if reply.usage is None else asdict(reply.usage),
        "tstamp": time.time(),
        "imported": False,
        "prompt": _prompt_hash(request),
    }


def adopt(replies: Sequence[Known], folder: Path) -> None:
    """Put the replies of somebody's judgment file into the folder's journal: they are not paid for again.

    Of several of one request the last counts, as everywhere; those that the journal has stay as they are. A reply that
    this folder had paid for under other settings, and wrote into the file itself, is none to these requests.
    """
    if not replies:
        return
    with Journal(folder / REPLIES, key=lambda row: tuple(row["key"])) as journal:
        for key, row in _adoptable(replies, journal.rows()).items():
            if not journal.has(key):
                journal.add(row)


def _adoptable(known: Sequence[Known], rows: Sequence[Mapping[str, Any]]) -> dict[Any, dict[str, Any]]:
    """Rows for a journal that has `rows`, by key. What served them, and under which settings, files do not say."""
    own: dict[Any, list[str]] = {}
    for row in rows:
        if not row["imported"]:
            own.setdefault((*row["key"][:-1], row.get("prompt")), []).append(row["text"])

    def is_own(request: Request, text: str) -> bool:
        # a game's text may go on with that of a second attempt
        asked = (_prompt_hash(request), None)  # journals of before say not what was asked
        mine = [one for hashed in asked for one in own.get((*request.key[:-1], hashed), ())]
        return any(text == one or (one and text.startswith(f"{one}\n")) for one in mine)

    unknown = {"served": None, "finish_reason": None, "usage": None}
    return {
        request.key: {"key": list(request.key), "text": text, **unknown, "tstamp": tstamp, "imported": True}
        for request, text, tstamp in known
        if not is_own(request, text)
    }


def _prompt_hash(request: Request) -> str:
    """Of the user's words, which is what judgment files keep: whoever is asked, and under whatever system message and
    settings."""
    return content_hash(request.messages[-1]["content"])[:20]


def other_replies(requests: Sequence[Request], folder: Path) -> str:
    """Words on replies of the folder's journal to the same questions that answer other requests; else nothing."""
    path = folder / REPLIES
    if not path.exists():
        return ""
    with Journal(path, key=lambda row: tuple(row["key"])) as journal:
        places = {tuple(row["key"][:-1]) for row in journal.rows()}
        count = sum(request.key[:-1] in places and not journal.has(request.key) for request in requests)
    if not count:
        return ""
    return (
        f"; there are {count} replies to the same questions under other judge settings, prompts or answers: give the "
        "run's --judge-model and --judge-extra"
    )


def unpaid(requests: Sequence[Request], folder: Path) -> list[Request]:
    """The requests that the folder's journal has no reply to."""
    path = folder / REPLIES
    if not path.exists():
        return list(requests)
    with Journal(path, key=lambda row: tuple(row["key"])) as journal:
        return [request for request in requests if not journal.has(request.key)]
