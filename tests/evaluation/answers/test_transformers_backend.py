"""A model in this process: the same answer in any batch, drawn from the distribution it is said to be drawn from."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from holdfast.errors import ConfigError, DataError, ModelError
from holdfast.evaluation.answers.client import CallError, Reply, Settings
from holdfast.evaluation.answers.generation import Request
from holdfast.evaluation.answers.generation_turns import Question, generate
from holdfast.evaluation.answers.transformers_backend import Draws, TransformersGenerator
from holdfast.models.tiny import tiny_model
from tests.evaluation.conftest import TEXT, answering_tokenizer

WORDS = TEXT.split()
GREEDY = Settings(max_tokens=12)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return answering_tokenizer()


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def model(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Gemma's layers slide over 8 tokens: prompts are longer, and padding must not count as a distance."""
    return tiny_model(
        request.param,
        len(tokenizer),
        seed=3,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )


@pytest.fixture(scope="module")
def llama(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    return tiny_model("llama", len(tokenizer), seed=3, eos_token_id=tokenizer.eos_token_id)


def requests(count: int, settings: Settings = GREEDY, seeds: bool = False) -> list[Request]:
    """Conversations of varied lengths."""
    return [
        Request(
            (n,),
            [{"role": "user", "content": " ".join(WORDS[n % 5 : n % 5 + 1 + 2 * (n % 7)])}],
            replace(settings, seed=n) if seeds else settings,
        )
        for n in range(count)
    ]


def answered(generator: TransformersGenerator, asked: Sequence[Request]) -> dict[Any, Reply]:
    """Every reply by its key; nothing may fail, or come twice."""
    replies: dict[Any, Reply] = {}

    def keep(request: Request, reply: Reply) -> None:
        assert request.key not in replies
        replies[request.key] = reply

    def fail(request: Request, error: CallError) -> None:
        raise error

    generator.answer(asked, keep, fail)
    return replies


def prompt_of(tokenizer: PreTrainedTokenizerFast, request: Request) -> list[int]:
    text = tokenizer.apply_chat_template(list(request.messages), tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]


def one_by_one(model: Any, tokenizer: Any, request: Request) -> list[int]:
    """Alone, without padding or a cache, each token by a full forward: what an answer is."""
    settings = request.settings
    ids, prompt = prompt_of(tokenizer, request), len(prompt_of(tokenizer, request))
    points = np.zeros(settings.max_tokens)
    if settings.temperature > 0:
        generator = torch.Generator().manual_seed(settings.seed or 0)
        points = torch.rand(settings.max_tokens, generator=generator, dtype=torch.float64).numpy()
    model.eval()
    for point in points:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double().numpy()
        if settings.temperature == 0:
            ids.append(int(logits.argmax()))
        else:
            weights = np.exp((logits - logits.max()) / settings.temperature)
            weights /= weights.sum()
            likely = np.sort(weights)[::-1]
            least = likely[min(int((np.cumsum(likely) < settings.top_p).sum()), len(likely) - 1)]
            line = np.cumsum(np.where(weights >= least, weights, 0))
            ids.append(int(np.searchsorted(line, point * line[-1], side="right")))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return ids[prompt:]


@pytest.mark.parametrize(
    "settings",
    [GREEDY, Settings(temperature=0.9, max_tokens=12), Settings(temperature=1.5, max_tokens=12, top_p=0.8)],
    ids=["greedy", "drawn", "top-p"],
)
def test_answers_are_those_of_each_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, settings: Settings
) -> None:
    """In any batch and order."""
    asked = requests(7, settings, seeds=settings.temperature > 0)
    expected = {}
    for request in asked:
        ids = one_by_one(model, tokenizer, request)
        ended = ids[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(ids, skip_special_tokens=True)
        expected[request.key] = (text, len(ids), "stop" if ended else "length")
    for batch_size, order in ((1, asked), (3, asked[::-1]), (16, asked[3:] + asked[:3])):
        found = answered(TransformersGenerator(model, tokenizer, batch_size=batch_size), order)
        said = {
            key: (reply.text, reply.usage.completion_tokens, reply.finish_reason)  # type: ignore[union-attr]
            for key, reply in found.items()
        }
        assert said == expected
    assert len({text for text, _, _ in expected.values()}) == 7


def test_greedy_and_drawn_rows_share_a_batch(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    cold, warm = requests(2), requests(4, Settings(temperature=1, max_tokens=12), seeds=True)[2:]
    generator = TransformersGenerator(llama, tokenizer)
    together = answered(generator, cold + warm)
    assert together == answered(generator, cold) | answered(generator, warm)


def test_a_seed_is_an_answer(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    def asked(seed: int) -> str:
        settings = Settings(temperature=1, max_tokens=12, seed=seed)
        return answered(TransformersGenerator(llama, tokenizer), requests(1, settings))[(0,)].text

    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    assert asked(1) == asked(1)
    assert asked(1) != asked(2)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_draws_follow_the_distribution() -> None:
    """Over many seeds, tokens come as often as their probability says, within five standard errors."""
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0])
    count, temperature = 4000, 0.8
    settings = [Settings(temperature=temperature, seed=n) for n in range(count)]
    scores = logits.expand(count, -1)
    drawn = Draws(settings, 1, 0)(torch.zeros(count, 0), scores).argmax(-1)
    expected = (logits.double() / temperature).softmax(-1)
    found = torch.bincount(drawn, minlength=4) / count
    assert ((found - expected).abs() < 5 * (expected * (1 - expected) / count).sqrt()).all()


def test_top_p_cuts_the_tail() -> None:
    """Probabilities .5 .3 .15 .05: of .75, the first two are kept, and drawn 5 to 3."""
    logits = torch.tensor([0.05, 0.5, 0.15, 0.3]).log()
    count = 4000
    settings = [Settings(temperature=1, seed=n, top_p=0.75) for n in range(count)]
    drawn = Draws(settings, 1, 0)(torch.zeros(count, 0), logits.expand(count, -1)).argmax(-1)
    found = torch.bincount(drawn, minlength=4) / count
    assert found[0] == found[2] == 0
    assert abs(float(found[1]) - 0.625) < 5 * (0.625 * 0.375 / count) ** 0.5


def test_a_draw_never_leaves_the_tokens_that_can_come() -> None:
    """Though rounding leaves the line a little short of 1, and some have no chance at all."""
    logits = torch.full((1, 1000), -torch.inf)
    logits[0, 500:510] = 0.0
    for point, top_p in itertools.product((0.0, 1 - 2**-53), (1.0, 0.5)):
        draws = Draws([Settings(temperature=0.01, seed=0, top_p=top_p)], 2, 0)
        draws._points[:] = point
        kept = draws(torch.zeros(1, 0), logits)
        assert 500 <= int(kept.argmax()) < 510
        assert int((kept == 0).sum()) == 1


def test_draws_need_a_seed(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="needs a seed"):
        answered(TransformersGenerator(llama, tokenizer), requests(1, Settings(temperature=1)))


def test_end_tokens_end_and_nothing_else_of_the_generation_config_counts(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = tiny_model("llama", len(tokenizer), seed=3, eos_token_id=tokenizer.eos_token_id)
    whole = one_by_one(model, tokenizer, requests(1)[0])
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, whole[5]]
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.min_new_tokens = 12
    model.generation_config.max_length = 3
    config = model.generation_config
    model.train()
    reply = answered(TransformersGenerator(model, tokenizer), requests(1))[(0,)]
    end = whole.index(whole[5])
    assert reply.text == tokenizer.decode(whole[:end])
    assert reply.finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == end + 1
    assert model.generation_config is config
    assert model.training


def test_a_stop_text_ends_an_answer(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    generator = TransformersGenerator(llama, tokenizer)
    free = answered(generator, requests(3))
    written = re.search("[a-z]{2}", free[(0,)].text)
    assert written is not None
    stop = written[0]
    stopped = answered(generator, requests(3, replace(GREEDY, stop=(stop, "never said"))))
    for key, reply in free.items():
        cut, found, _ = reply.text.partition(stop)
        assert stopped[key].text == cut
        if found:
            assert stopped[key].finish_reason == "stop"
    assert stopped[(0,)].usage.completion_tokens < 12  # type: ignore[union-attr]


def test_the_context_bounds_an_answer_and_a_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    asked = [
        Request(("fits",), [{"role": "user", "content": "wind"}], GREEDY),
        Request(("tight",), [{"role": "user", "content": " ".join(WORDS)}], GREEDY),
        Request(("too long",), [{"role": "user", "content": " ".join(WORDS * 2)}], GREEDY),
    ]
    tight = len(prompt_of(tokenizer, asked[1]))
    model = tiny_model(
        "llama",
        len(tokenizer),
        seed=3,
        eos_token_id=tokenizer.eos_token_id,
        max_position_embeddings=tight + 3,
    )
    kept: dict[Any, Reply] = {}
    failed: dict[Any, CallError] = {}
    TransformersGenerator(model, tokenizer).answer(
        asked,
        lambda request, reply: kept.update({request.key[0]: reply}),
        lambda request, error: failed.update({request.key[0]: error}),
    )
    assert kept.keys() == {"fits", "tight"}
    assert kept["fits"].usage.completion_tokens == 12  # type: ignore[union-attr]
    assert kept["tight"].usage.completion_tokens == 3  # type: ignore[union-attr]
    assert kept["tight"].finish_reason == "length"
    assert failed["too long"].of_request
    assert f"no room in the model's context of {tight + 3}" in str(failed["too long"])


def test_what_the_template_refuses_fails_alone(llama: PreTrainedModel) -> None:
    tokenizer = answering_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    asked = requests(2)
    asked[1] = replace(asked[1], messages=[{"role": "system", "content": "be kind"}, *asked[1].messages])
    kept: list[Any] = []
    failed: list[Any] = []
    TransformersGenerator(llama, tokenizer).answer(
        asked,
        lambda r, reply: kept.append(r.key),
        lambda r, error: failed.append((r.key, error.reason, str(error))),
    )
    assert kept == [(0,)]
    assert failed[0][:2] == ((1,), "template")
    assert "no system here" in failed[0][2]
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="has no chat template"):
        answered(TransformersGenerator(llama, tokenizer), requests(1))


def test_what_does_not_fit_in_memory_is_halved(
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = requests(9, Settings(temperature=1, max_tokens=6), seeds=True)
    expected = answered(TransformersGenerator(llama, tokenizer, batch_size=1), asked)
    sizes: list[int] = []
    real = llama.generate

    def small(input_ids: torch.Tensor, **options: Any) -> Any:
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(input_ids=input_ids, **options)

    monkeypatch.setattr(llama, "generate", small)
    generator = TransformersGenerator(llama, tokenizer, batch_size=8)
    with caplog.at_level(logging.WARNING):
        assert answered(generator, asked) == expected
    assert sizes == [8, 4, 2, 2, 2, 2, 1]
    assert generator.batch_size == 2
    assert "from here on 2 conversations at once" in caplog.text


def test_one_conversation_that_does_not_fit(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(**options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(llama, "generate", never)
    with pytest.raises(ModelError, match="one conversation of .* does not fit in memory: lower max_tokens"):
        answered(TransformersGenerator(llama, tokenizer, batch_size=4), requests(4))

    def broken(**options: Any) -> Any:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(llama, "generate", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        answered(TransformersGenerator(llama, tokenizer), requests(1))


def test_what_cannot_answer_says_so(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="batch_size must be at least 1"):
        TransformersGenerator(llama, tokenizer, batch_size=0)
    with pytest.raises(ConfigError, match="extra: 'top_k' is for servers"):
        answered(TransformersGenerator(llama, tokenizer), requests(1, Settings(extra={"top_k": 5})))
    with pytest.raises(ModelError, match="the tokenizer .* has tokens up to number"):
        TransformersGenerator(tiny_model("llama", 300), tokenizer)
    endless = answering_tokenizer()
    endless.eos_token = None
    with pytest.raises(ModelError, match="has an end token"):
        TransformersGenerator(tiny_model("llama", len(tokenizer)), endless)


def test_from_a_folder_through_two_turns(answering_folder: Path, tmp_path: Path) -> None:
    """What is in the journal is not asked again."""
    talk = [Question(n, ("the tide", "again"), Settings(temperature=n / 2, max_tokens=6)) for n in range(3)]
    generator = TransformersGenerator.load(str(answering_folder), dtype="float32", device="cpu", batch_size=2)
    assert generator.model == str(answering_folder)
    made = generate(generator, talk, tmp_path, samples=1)
    assert made.failed == {}
    assert all(
        sample is not None and len(sample) == 2 for samples in made.answers.values() for sample in samples
    )
    lines = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert len(lines) == 6
    (tmp_path / "answers.jsonl").write_text("\n".join(lines[:4]) + "\n" + lines[4][:30])
    assert generate(generator, talk[::-1], tmp_path).answers == made.answers
