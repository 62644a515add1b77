"""What is handed to vLLM, and what is made of its answers. vLLM itself, which needs a GPU, is stood in for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast.errors import ConfigError, ModelError
from holdfast.evaluation.answers.client import CallError, Reply, Settings, Usage
from holdfast.evaluation.answers.generation import Request
from holdfast.evaluation.answers.transformers_backend import TransformersGenerator
from holdfast.evaluation.answers.vllm_backend import VllmGenerator


class Engine:
    """Stands in for `vllm.LLM`: answers with the number of tokens that it was shown."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.calls: list[tuple[list[Any], list[Any]]] = []

    def generate(self, prompts: list[Any], sampling: list[Any], use_tqdm: bool) -> list[Any]:
        self.calls.append((prompts, sampling))
        return [
            SimpleNamespace(
                outputs=[
                    SimpleNamespace(
                        text=f"saw {len(p['prompt_token_ids'])}", token_ids=(1, 2), finish_reason="stop"
                    )
                ]
            )
            for p in prompts
        ]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(LLM=Engine, SamplingParams=lambda **settings: settings)
    monkeypatch.setitem(sys.modules, "vllm", module)  # type: ignore[arg-type]


def requests(count: int, settings: Settings) -> list[Request]:
    return [Request((n,), [{"role": "user", "content": "wind " * (n + 1)}], settings) for n in range(count)]


def test_prompts_and_settings_are_handed_over(vllm: None, answering_folder: Path) -> None:
    settings = Settings(temperature=0.7, max_tokens=9, top_p=0.9, seed=4, stop=("END",))
    generator = VllmGenerator(str(answering_folder), together=2, engine={"tensor_parallel_size": 2})
    kept: dict[Any, Reply] = {}
    generator.answer(
        requests(3, settings),
        lambda r, reply: kept.update({r.key: reply}),
        lambda r, error: pytest.fail(str(error)),
    )
    engine: Any = generator._engine
    assert engine.options == {
        "model": str(answering_folder),
        "revision": None,
        "dtype": "auto",
        "max_model_len": 2048,
        "tensor_parallel_size": 2,
    }
    assert [len(prompts) for prompts, _ in engine.calls] == [2, 1]
    assert engine.calls[0][1][0] == {
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 9,
        "seed": 4,
        "stop": ["END"],
    }
    here = TransformersGenerator.load(str(answering_folder), device="cpu")
    for request in requests(3, settings):
        tokens = here._prompt(request).tokens
        assert kept[request.key] == Reply(
            f"saw {len(tokens)}", str(answering_folder), Usage(len(tokens), 2), "stop"
        )


def test_a_prompt_that_does_not_fit_fails(vllm: None, answering_folder: Path) -> None:
    failed: list[CallError] = []
    generator = VllmGenerator(str(answering_folder), context=8)
    generator.answer(
        requests(1, Settings()), lambda r, reply: pytest.fail("kept"), lambda r, e: failed.append(e)
    )
    assert [error.reason for error in failed] == ["too long"]


def test_without_vllm_it_says_what_to_install(
    answering_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"pip install 'holdfast\[vllm\]'"):
        VllmGenerator(str(answering_folder))
    with pytest.raises(ConfigError, match="together must be at least 1"):
        VllmGenerator(str(answering_folder), together=0)
