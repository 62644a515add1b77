"""A template that loses what the messages say is refused, with the words it lost; those of real models lose nothing."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.data.chat import encode_pairs, encode_sft
from holdfast.data.faults import Problem
from holdfast.data.records import preference_record
from holdfast.data.rendering import ChatRenderer
from holdfast.data.validation import InvalidRows
from tests.data.conftest import ASK, TURN, MakeTokenizer
from tests.data.encoding import ANY_LENGTH, ASSISTANT, BOS, chat, encode, fault, message, pair

THINK = "<think>\n\nhm\n</think>\nyes"


@pytest.mark.parametrize(
    ("content", "lost"),
    [
        ("m['content'].split('</think>')[-1]", "the rendering lacks '<think>\\n\\nhm\\n</think>\\nyes'"),
        ("m['content'][:-1]", "behind '<think>\\n\\nhm\\n</think>\\n' the rendering lacks 'yes'"),
        (
            "(m['content'] | replace('hm', 'h m!'))",
            "behind '<think>\\n\\nhm\\n' the rendering lacks '</think>\\nyes'",
        ),
    ],
)
def test_template_that_loses_text_of_the_answer(
    make_tokenizer: MakeTokenizer, content: str, lost: str
) -> None:
    tokenizer = make_tokenizer(content=f"({content} if {ASSISTANT} else m['content'])")
    record = pair(chosen=THINK)
    problem = fault(record, tokenizer)
    assert (problem.reason, problem.check) == ("template", "completion_is_rendered")
    assert lost in problem.detail
    assert "same tokens" not in problem.detail
    with pytest.raises(InvalidRows) as error:
        encode_sft([record.chosen_as_sft()], tokenizer, ANY_LENGTH)
    assert error.value.problems[0].check == "completion_is_rendered"


CHAT = ("system Be brief.", "user Go on", "assistant hm</think>one", "user Go on")


@pytest.mark.parametrize(
    ("turn", "role"),
    [
        ("{% if m['role'] != 'system' %}TURN{% endif %}", "system"),
        ("{% if m['role'] != 'user' %}TURN{% endif %}", "user"),
        ("{% if loop.index0 != 1 %}TURN{% endif %}", "user"),  # the same text stands once more, further on
        ("{% if loop.index0 != 3 %}TURN{% endif %}", "user"),
    ],
)
def test_template_that_loses_text_of_the_prompt(make_tokenizer: MakeTokenizer, turn: str, role: str) -> None:
    tokenizer = make_tokenizer(turn.replace("TURN", TURN))
    problem = fault(chat(*CHAT), tokenizer)
    assert (problem.reason, problem.check) == ("template", "prompt_is_rendered")
    words = {"system": "Be brief.", "user": "Go on"}[role]
    assert f"of the prompt's {role} turn: the rendering lacks '{words}'" in problem.detail
    with pytest.raises(InvalidRows) as error:
        encode_sft([chat(*CHAT).chosen_as_sft()], tokenizer, ANY_LENGTH)
    assert error.value.problems[0].check == "prompt_is_rendered"


def test_tool_turns_and_calls_may_be_written_in_any_form(make_tokenizer: MakeTokenizer) -> None:
    content = "('' if m['role'] == 'tool' or m.get('tool_calls') else m['content'])"
    call = message("assistant", "I will add.") | {"tool_calls": [{"function": {"name": "add"}}]}
    prompt = [message("user", "2 + 2?"), call, message("tool", "4")]
    record = preference_record(
        "rows.jsonl:7", prompt, [message("assistant", "It is 4.")], [message("assistant", "It is 5.")]
    )
    (encoded,), _ = encode_pairs([record], make_tokenizer(content=content), ANY_LENGTH)
    assert len(encoded.chosen_ids) == len("It is 4.") + 1


@pytest.mark.parametrize(
    ("turn", "ask"),
    [
        ("{% if m['role'] != 'assistant' %}TURN{% endif %}", True),
        ("{% if m['role'] != 'assistant' %}TURN{% endif %}", False),
        ("{% if m['role'] != 'assistant' %}TURN{% else %}{{ '\n' }}{% endif %}", False),
    ],
)
@pytest.mark.parametrize("append_eos", [False, True])
def test_template_that_renders_no_answer(
    make_tokenizer: MakeTokenizer, turn: str, ask: bool, append_eos: bool
) -> None:
    tokenizer = make_tokenizer(turn.replace("TURN", TURN), **({} if ask else {"ask": ""}))
    problem = fault(pair(), tokenizer, append_eos=append_eos)
    assert (problem.reason, problem.check) == ("template", "completion_is_rendered")
    assert "does not render the answer" in problem.detail


@pytest.mark.parametrize(
    ("failure", "named"),
    [
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ range(10 ** 9) | length }}", "OverflowError"),
        ("{{ messages.append(1) }}", "SecurityError"),
    ],
)
def test_template_that_fails_in_any_way_is_a_fault_of_the_row(
    make_tokenizer: MakeTokenizer, failure: str, named: str
) -> None:
    before = "{% if messages[0]['content'] == 'bad' %}" + failure + "{% endif %}"
    problems: list[Problem] = []
    encoded, _ = encode_pairs(
        [pair("bad"), pair()], make_tokenizer(before=before), ANY_LENGTH, problems=problems
    )
    assert len(encoded) == 1
    assert problems[0].reason == "template"
    assert f"refuses this conversation: {named}: " in problems[0].detail


# --- formats of real models --------------------------------------------------------------------------

QWEN3 = """{% set c = m['content'] %}{% set r = '' %}{% if m['role'] == 'assistant' and '</think>' in c %}\
{% set r = c.split('</think>')[0].split('<think>')[-1].strip() %}{% set c = c.split('</think>')[-1].lstrip() %}\
{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + ('<think>\n' + r + '\n</think>\n\n' \
if m['role'] == 'assistant' and loop.last else '') + c + '<|im_end|>\n' }}"""
LLAMA3 = "{{ '<|im_start|>' + m['role'] + '<pad>\n\n' + m['content'] | trim + '<|im_end|>' }}"
LLAMA2 = """{% if m['role'] == 'assistant' %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}\
{% elif m['role'] == 'user' %}{{ bos_token + '[INST] ' + ('<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' \
if loop.index0 == 1 and messages[0]['role'] == 'system' else '') + m['content'].strip() + ' [/INST]' }}{% endif %}"""
GEMMA = """{% if m['role'] != 'system' %}{{ '<|im_start|>' + ('model' if m['role'] == 'assistant' else m['role']) \
+ '\n' + (messages[0]['content'] + '\n\n' if loop.index0 == 1 and messages[0]['role'] == 'system' else '') \
+ m['content'] | trim + '<|im_end|>\n' }}{% endif %}"""
MISTRAL = """{% if m['role'] == 'assistant' %}{{ m['content'] + eos_token }}{% elif m['role'] == 'user' %}\
{{ '[INST]' + (messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' and \
loop.index0 == (messages | selectattr('role', 'equalto', 'user') | list | length) * 2 - 1 else '') \
+ m['content'] + '[/INST]' }}{% endif %}"""
FORMATS: dict[str, dict[str, Any]] = {
    "qwen3": {"turn": QWEN3},
    "llama3": {"turn": LLAMA3, "before": "{{ bos_token }}", "ask": ASK.replace("\n", "<pad>\n\n"), **BOS},
    "llama2": {"turn": LLAMA2, "ask": "", "eos": "</s>", **BOS},
    "gemma": {"turn": GEMMA, "before": "{{ bos_token }}", "ask": ASK.replace("assistant", "model"), **BOS},
    "mistral": {"turn": MISTRAL, "before": "{{ bos_token }}", "ask": "", "eos": "</s>", **BOS},
    "smollm2": {"turn": TURN, "bos": "<|im_start|>"},
    "deepseek": {"turn": TURN, "ask": ASK.replace("assistant\n", "assistant\n<think>\n")},
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_of_real_models_lose_nothing(make_tokenizer: MakeTokenizer, name: str) -> None:
    tokenizer = make_tokenizer(**FORMATS[name])
    answers = ("<think>\nhm </think>yes \n", "<think>\nno")
    turns = ("system Be brief.", "user  Go\non ", "assistant one", "user Go on ")
    record = chat(*turns, answers=answers)
    encoded = encode(record, tokenizer)
    (sft,), _ = encode_sft([record.chosen_as_sft()], tokenizer, ANY_LENGTH)
    assert sft.input_ids == encoded.prompt_ids + encoded.chosen_ids
    rendered = "".join(tokenizer.decode(sft.input_ids).split())
    assert "Goon" in rendered
    assert "<think>hm</think>yes" in rendered
    assert ChatRenderer(tokenizer).trained_header(record.prompt, record.chosen[0], record) == ""
