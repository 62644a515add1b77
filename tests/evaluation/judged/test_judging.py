"""Asking a judge for what is missing: keys, the journal, and what nobody is paid for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.errors import DataError
from holdfast.evaluation.answers.client_settings import Settings
from holdfast.evaluation.judged.judging import (
    Judge,
    Judgment,
    Known,
    fitting,
    gather,
    is_of,
    served_otherwise,
    unpaid,
)
from holdfast.evaluation.judged.judgment_files import AskedWith
from tests.evaluation.scripted import Scripted

MESSAGES = [{"role": "user", "content": "which?"}]


def judge_of(scripted: Scripted | None = None) -> Judge:
    return Judge("j", Settings(max_tokens=5), scripted)


def test_a_key_is_of_everything_that_is_sent() -> None:
    judge = judge_of()
    key = judge.request(MESSAGES, 1, "a").key
    assert key[:2] == (1, "a")
    assert key == judge.request(MESSAGES, 1, "a").key
    others = [
        replace(judge, model="k").request(MESSAGES, 1, "a"),
        replace(judge, settings=Settings(max_tokens=6)).request(MESSAGES, 1, "a"),
        judge.request([{"role": "user", "content": "which? "}], 1, "a"),
    ]
    assert len({key, *(other.key for other in others)}) == 4


def test_replies_are_kept_and_the_rest_is_named(tmp_path: Path) -> None:
    scripted = Scripted(
        lambda request: None if request.key[0] == 2 else f"said {request.key[0]}", finish_reason="length"
    )
    judge = judge_of(scripted)
    requests = [judge.request(MESSAGES, number) for number in (1, 2, 3)]
    assert unpaid(requests, tmp_path) == requests
    found = gather(judge, requests, tmp_path)
    assert [found.texts.get(request.key) for request in requests] == ["said 1", None, "said 3"]
    assert list(found.failed) == [requests[1].key]
    assert (scripted.asked, found.imported) == (3, set())
    told = AskedWith(judge.settings.as_dict(), ("scripted",))
    assert found.asked_with == {requests[0].key: told, requests[2].key: told}
    assert found.cut == [requests[0].key, requests[2].key]  # the limit of tokens ended them
    assert unpaid(requests, tmp_path) == [requests[1]]
    offline = gather(judge_of(), requests, tmp_path)
    assert offline.texts == found.texts
    assert offline.failed == {}  # nobody was asked: no call failed
    gather(judge, requests, tmp_path)
    assert scripted.asked == 4


def test_offline_without_a_journal_makes_no_file(tmp_path: Path) -> None:
    found = gather(judge_of(), [judge_of().request(MESSAGES, 1)], tmp_path / "none")
    assert (found.texts, found.failed) == ({}, {})
    assert not (tmp_path / "none").exists()


def test_a_torn_last_line_is_asked_again(tmp_path: Path) -> None:
    scripted = Scripted(lambda request: "said")
    judge = judge_of(scripted)
    requests = [judge.request(MESSAGES, number) for number in range(4)]
    whole = gather(judge, requests, tmp_path)
    file = tmp_path / "judge_replies.jsonl"
    content = file.read_bytes()
    for cut in (1, 20, len(content) // 4 - 1):
        file.write_bytes(content[:-cut])
        assert gather(judge, requests, tmp_path).texts == whole.texts
    assert scripted.asked == 4 + 2  # the line that lacked its line break alone was whole


def test_what_files_hold_is_not_paid_for_and_stays_what_it_was_at_first(tmp_path: Path) -> None:
    scripted = Scripted(lambda request: "mine")
    judge = judge_of(scripted)
    requests = [judge.request(MESSAGES, number) for number in (1, 2)]
    known = [Known(requests[0], "theirs", 3.0), Known(requests[0], "theirs at last", 4.0)]
    found = gather(judge, requests, tmp_path, known)
    assert found.texts == {requests[0].key: "theirs at last", requests[1].key: "mine"}
    assert (scripted.asked, found.imported, found.times[requests[0].key]) == (1, {requests[0].key}, 4.0)
    assert found.asked_with[requests[0].key] is None
    later = gather(judge, requests, tmp_path, [Known(requests[0], "another"), Known(requests[1], "another")])
    assert (later.texts, scripted.asked) == (found.texts, 1)


def judgment(**known: object) -> Judgment:
    whole = {"place": (1, 1), "judge": "j", "prompt": "which?", "system": None, "text": "said"} | known
    return Judgment(**whole)  # type: ignore[arg-type]


class Asked:
    """A call at question 1, turn 1."""

    place = (1, 1)

    def __init__(self, judge: Judge, messages: list[dict[str, str]]) -> None:
        self.messages = messages
        self.request = judge.request(messages, 1, 1)


@pytest.mark.parametrize(
    ("known", "fits"),
    [
        ({}, True),
        ({"system": "be strict"}, True),
        ({"judge": None}, False),  # whoever judged
        ({"asked": AskedWith(Settings(max_tokens=5).as_dict(), ("k",))}, True),
        ({"asked": AskedWith(Settings(max_tokens=6).as_dict())}, False),
        ({"judge": "k"}, False),
        ({"prompt": "which one?"}, False),
        ({"prompt": None}, False),
        ({"system": ""}, False),
        ({"system": "be kind"}, False),
        ({"place": (1, 2)}, False),
    ],
)
def test_a_judgment_fits_what_asks_exactly_it(known: dict[str, object], fits: bool) -> None:
    call = Asked(judge_of(), [{"role": "system", "content": "be strict"}, *MESSAGES])
    found = fitting([judgment(**known)], [call], judge_of())
    assert [one.text for one in found] == ["said"] * fits
    assert all(one.request == call.request for one in found)


def test_what_does_not_say_its_settings_was_asked_with_the_benchmarks() -> None:
    warm = replace(judge_of(), settings=Settings(max_tokens=5, extra={"temperature": 1}))
    assert fitting([judgment()], [Asked(judge_of(), MESSAGES)], judge_of()) != []
    assert fitting([judgment()], [Asked(warm, MESSAGES)], warm) == []


def test_without_a_system_message_an_empty_one_is_the_same() -> None:
    assert is_of(judgment(system=""), MESSAGES)
    assert not is_of(judgment(system="be strict"), MESSAGES)


def test_a_journal_of_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "judge_replies.jsonl").write_text(json.dumps({"no": "key"}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"judge_replies.jsonl:1: a row without its key"):
        gather(judge_of(Scripted(lambda r: "x")), [judge_of().request(MESSAGES, 1)], tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": {"a": 1}},
        {"tstamp": float("nan")},
        {"settings": 3},
        {"served": "gpt-4"},
        {"text": None},
        {"tstamp": "now"},
        {"imported": None},
    ],
)
def test_a_row_that_is_no_reply_is_named(tmp_path: Path, wrong: dict[str, object]) -> None:
    judge = judge_of(Scripted(lambda r: "x"))
    request = judge.request(MESSAGES, 1)
    gather(judge, [request], tmp_path)
    file = tmp_path / "judge_replies.jsonl"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | wrong), encoding="utf-8")
    with pytest.raises(DataError, match=r"judge_replies.jsonl.*is no judge's reply"):
        gather(judge, [request], tmp_path)


def test_a_server_may_say_its_version_and_nothing_else() -> None:
    assert served_otherwise({"asked": "gpt-4", "served": {"gpt-4-0613": 3, "gpt-4": 1}}) == []
    assert served_otherwise({"asked": "gpt-4", "served": {"llama": 3}}) == [
        "the server of gpt-4 says that it is llama"
    ]
    assert served_otherwise({"asked": "gpt-4"}) == []


@pytest.mark.parametrize(
    ("asked", "served", "same"),
    [
        ("gpt-4", "gpt-4", True),
        ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("gpt-4", "gpt-4o-mini", False),
        ("gpt-4", "gpt-4-turbo", False),
        ("gpt-4", "gpt-4-0613-mini", False),
        ("gpt-4", "gpt-4-1106-preview", False),
        ("gpt-4", "gpt-4-0613\n", False),
        ("a.b", "a-b", False),
    ],
)
def test_a_longer_name_is_another_judge(asked: str, served: str, same: bool) -> None:
    assert (served_otherwise({"asked": asked, "served": {served: 1}}) == []) is same


def test_an_official_judge_is_served_by_an_official_one() -> None:
    official = ("gpt-4", "gpt-4-0613")
    assert served_otherwise({"asked": "gpt-4", "served": {"gpt-4-0613": 1}}, official) == []
    assert served_otherwise({"asked": "gpt-4", "served": {"gpt-4-0125": 1}}, official) != []
    assert served_otherwise({"asked": "other", "served": {"other-0125": 1}}, official) == []


def test_replies_of_a_file_are_read_where_nobody_is_asked_and_nothing_is_written(tmp_path: Path) -> None:
    judge = judge_of()
    requests = [judge.request(MESSAGES, number) for number in (1, 2)]
    known = [Known(requests[0], "first", 3.0), Known(requests[0], "last", 4.0)]
    found = gather(judge, requests, tmp_path, known)
    assert (found.texts, found.imported) == ({requests[0].key: "last"}, {requests[0].key})
    assert found.failed == {}
    assert list(tmp_path.iterdir()) == []
    gather(judge_of(Scripted(lambda r: "said")), requests[1:], tmp_path)
    assert gather(judge, requests, tmp_path, known).texts == {
        requests[0].key: "last",
        requests[1].key: "said",
    }
