"""Questions of several turns and samples: who sees what, with which seed, and what a second run asks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holdfast.errors import ConfigError, DataError
from holdfast.evaluation.answers.client import Settings
from holdfast.evaluation.answers.generation import Request
from holdfast.evaluation.answers.generation_turns import Generated, Question, generate, without_thinking
from tests.evaluation.scripted import Scripted

WARM = Settings(temperature=0.7, max_tokens=8)
TALK = [Question(81, ("a", "b"), WARM, system="be kind"), Question("q2", ("c",), Settings(max_tokens=8))]


def echo(request: Request) -> str:
    """What it was shown, so that answers tell whom they saw."""
    return f"<think>hm</think>\n({'/'.join(m['content'] for m in request.messages)})"


def texts(made: Generated) -> dict[str | int, list[list[str] | None]]:
    return {
        name: [None if sample is None else [reply.text for reply in sample] for sample in samples]
        for name, samples in made.answers.items()
    }


def test_turn_two_sees_its_own_turn_one(tmp_path: Path) -> None:
    made = generate(Scripted(echo), TALK, tmp_path)
    first = "<think>hm</think>\n(be kind/a)"
    assert texts(made) == {
        81: [[first, f"<think>hm</think>\n(be kind/a/{first}/b)"]],
        "q2": [["<think>hm</think>\n(c)"]],
    }
    assert made.failed == {}


def test_thoughts_are_kept_raw_and_left_out(tmp_path: Path) -> None:
    made = generate(Scripted(echo), TALK, tmp_path, thinking="strip")
    assert texts(made)[81] == [["(be kind/a)", "(be kind/a/(be kind/a)/b)"]]
    raw = [json.loads(line)["text"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert all(text.startswith("<think>hm</think>") for text in raw)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("plain", "plain"),
        ("<think>a</think>b", "b"),
        ("\n<think>\na\n</think>\n\nb </think>", "b </think>"),
        ("a</think>\nb", "b"),  # the template has opened it
        ("<think>a", ""),  # cut off in the middle of a thought
        ("<think></think>", ""),
        ("of <think> and </think> I say", "of <think> and </think> I say"),
        ("", ""),
    ],
)
def test_without_thinking(text: str, answer: str) -> None:
    assert without_thinking(text) == answer


def test_each_turn_of_each_sample_has_a_seed_of_its_own(tmp_path: Path) -> None:
    seeds: dict[object, int | None] = {}

    def script(request: Request) -> str:
        seeds[request.key] = request.settings.seed
        return "x"

    warm = [Question(n, ("a", "b"), WARM) for n in (1, "1", 2)]
    generate(Scripted(script), warm, tmp_path / "one", samples=3)
    assert len(seeds) == len(set(seeds.values())) == 18
    assert all(seed is not None and 0 <= seed < 2**31 for seed in seeds.values())
    before = dict(seeds)
    seeds.clear()
    generate(Scripted(script), warm[::-1][:2], tmp_path / "two", samples=2)
    assert seeds.items() <= before.items()  # neither the other questions nor the order count
    generate(Scripted(script), warm, tmp_path / "three", samples=3, seed=1)
    assert not set(seeds.values()) & set(before.values())


def test_a_seed_of_the_questions_own_stays(tmp_path: Path) -> None:
    seeds: list[int | None] = []
    fixed = Settings(temperature=0.7, max_tokens=8, seed=5)
    generate(
        Scripted(lambda r: seeds.append(r.settings.seed) or "x"), [Question(1, ("a", "b"), fixed)], tmp_path
    )
    assert seeds == [5, 5]
    with pytest.raises(ConfigError, match="2 samples of the question 1 would all be alike"):
        generate(Scripted(echo), [Question(1, ("a",), fixed)], tmp_path / "two", samples=2)


def test_a_failed_turn_fails_its_sample_alone_and_is_asked_again(tmp_path: Path) -> None:
    questions = [Question(n, ("a", "b"), WARM) for n in range(3)]
    broken = Scripted(lambda r: None if r.key == (1, 1, 0) else echo(r))
    made = generate(broken, questions, tmp_path, samples=2)
    assert made.failed == {(1, 1, 0): "the request was refused"}
    assert made.answers[1][1] is None
    assert made.answers[1][0] is not None
    assert broken.asked == 11  # the failed sample's second turn is not
    whole = Scripted(echo)
    again = generate(whole, questions, tmp_path, samples=2)
    assert whole.asked == 2
    assert again.failed == {}
    assert texts(again)[0] == texts(made)[0]
    idle = Scripted(echo)
    assert texts(generate(idle, questions[::-1], tmp_path, samples=2)) == texts(again)
    assert idle.asked == 0


def test_other_questions_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    generate(Scripted(echo), TALK, tmp_path)
    with pytest.raises(DataError, match="another request of the key"):
        generate(Scripted(echo), [Question("q2", ("other",), Settings(max_tokens=8))], tmp_path)


def test_questions_that_cannot_be_asked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two questions have the id 81"):
        generate(Scripted(echo), [TALK[0], TALK[0]], tmp_path)
    with pytest.raises(DataError, match="the question 1 has no turn"):
        generate(Scripted(echo), [Question(1, (), WARM)], tmp_path)
    with pytest.raises(ConfigError, match="samples must be 1 to 1024"):
        generate(Scripted(echo), TALK, tmp_path, samples=0)
    with pytest.raises(ConfigError, match="at temperature 0"):
        generate(Scripted(echo), TALK[1:], tmp_path, samples=2)
    assert generate(Scripted(echo), [], tmp_path) == Generated({}, {})
