"""Templates and tokenizers that fool naive code: what must come out right, and what must be refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from holdfast.data.chat import EncodedPair, LengthRule, encode_pairs, encode_sft
from holdfast.data.faults import Problem
from holdfast.data.records import PreferenceRecord, preference_record
from holdfast.data.rendering import ChatRenderer
from holdfast.data.validation import InvalidRows
from holdfast.errors import DataError
from tests.data.conftest import ASK, TURN

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]

ANY_LENGTH = LengthRule(None)
BOS = {"bos": "<s>", "adds_bos": True}


def message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def pair(prompt: str = "Hi", chosen: str = "yes", rejected: str = "no", **options: Any) -> PreferenceRecord:
    return preference_record(
        "rows.jsonl:7",
        [message("user", prompt)],
        [message("assistant", chosen)],
        [message("assistant", rejected)],
        **options,
    )


def encode(record: PreferenceRecord, tokenizer: PreTrainedTokenizerFast, **options: Any) -> EncodedPair:
    (encoded,), _ = encode_pairs([record], tokenizer, ANY_LENGTH, **options)
    return encoded


def fault(record: PreferenceRecord, tokenizer: PreTrainedTokenizerFast, **options: Any) -> Problem:
    """The one problem of a pair that must not be encodable."""
    with pytest.raises(InvalidRows) as error:
        encode_pairs([record], tokenizer, ANY_LENGTH, **options)
    (problem,) = error.value.problems
    assert problem.where == "rows.jsonl:7"
    return problem


# --- templates that fool naive code ------------------------------------------------------------------


def test_template_that_trims_content(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(content="m['content'] | trim")
    encoded = encode(pair("  Hi ", "\n yes \n", "no"), tokenizer)
    assert tokenizer.decode(encoded.prompt_ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(encoded.chosen_ids) == "yes<|im_end|>"


def test_template_that_adds_a_default_system_turn(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(before="<|im_start|>system\nBe kind.<|im_end|>\n")
    encoded = encode(pair(), tokenizer)
    assert tokenizer.decode(encoded.prompt_ids).startswith("<|im_start|>system\nBe kind.<|im_end|>\n")
    assert tokenizer.decode(encoded.chosen_ids) == "yes<|im_end|>"


def test_template_whose_generation_prompt_is_not_the_rendered_turn(
    make_tokenizer: MakeTokenizer,
) -> None:
    ask = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    problem = fault(pair(), make_tokenizer(ask=ask))
    assert problem.reason == "template"
    assert "<think>" in problem.detail  # the prompt as rendered for generation
    assert "assistant\\nyes<|im_end|>" in problem.detail  # and the conversation


def test_template_that_strips_answers_alone(make_tokenizer: MakeTokenizer) -> None:
    """The prompt keeps its whitespace; sides that differ only in what is stripped are no pair."""
    content = "(m['content'].strip() if m['role'] == 'assistant' else m['content'])"
    tokenizer = make_tokenizer(content=content, merges=[("Ċ", "Ċ")])
    encoded = encode(pair(" Hi ", "\nyes\n", "no"), tokenizer)
    assert "user\n Hi <|im_end|>" in tokenizer.decode(encoded.prompt_ids)
    assert tokenizer.decode(encoded.chosen_ids) == "yes<|im_end|>"


def test_template_that_opens_the_last_answer_with_empty_reasoning(make_tokenizer: MakeTokenizer) -> None:
    """As Qwen3's: the rendered turn has more than the generation prompt, and what it adds is trained."""
    last = "('<think>\n\n</think>\n\n' if m['role'] == 'assistant' and loop.last else '') + m['content']"
    tokenizer = make_tokenizer(content=f"({last})")
    encoded = encode(pair(), tokenizer)
    assert tokenizer.decode(encoded.prompt_ids).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(encoded.chosen_ids) == "<think>\n\n</think>\n\nyes<|im_end|>"


def test_template_that_drops_earlier_reasoning_from_a_prompt(make_tokenizer: MakeTokenizer) -> None:
    content = "(m['content'] if loop.last else m['content'].split('</think>')[-1])"
    tokenizer = make_tokenizer(content=content)
    record = preference_record(
        "rows.jsonl:7",
        [message("user", "a"), message("assistant", "hm</think>one"), message("user", "b")],
        [message("assistant", "ha</think>two")],
        [message("assistant", "three")],
    )
    encoded = encode(record, tokenizer)
    assert "one<|im_end|>" in tokenizer.decode(encoded.prompt_ids)
    assert "hm" not in tokenizer.decode(encoded.prompt_ids)
    assert tokenizer.decode(encoded.chosen_ids) == "ha</think>two<|im_end|>"


def test_template_that_keeps_reasoning_until_the_answer_is_there(make_tokenizer: MakeTokenizer) -> None:
    """The prompt asked with is another than the one trained behind: earlier reasoning goes once answered."""
    kept = "(m['content'] if add_generation_prompt else m['content'].split('</think>')[-1])"
    record = preference_record(
        "rows.jsonl:7",
        [message("user", "a"), message("assistant", "hm</think>one"), message("user", "b")],
        [message("assistant", "two")],
        [message("assistant", "three")],
    )
    problem = fault(record, make_tokenizer(content=kept))
    assert "the prompt as rendered for generation is not how the whole conversation begins" in problem.detail
    assert "hm</think>one" in problem.detail
    assert problem.check == "prompt_is_prefix"


def test_template_without_an_end_token(make_tokenizer: MakeTokenizer) -> None:
    open_turn = "{{ m['role'] + ': ' + m['content'] + '\n' }}"
    ask = "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    tokenizer = make_tokenizer(open_turn, ask=ask)
    problem = fault(pair(), tokenizer)
    assert problem.reason == "template"
    assert "['y', 'e', 's', '\\n']" in problem.detail
    assert "set `append_eos`" in problem.detail
    encoded = encode(pair(), tokenizer, append_eos=True)
    assert tokenizer.decode(encoded.chosen_ids) == "yes\n<|im_end|>"


def test_append_eos_adds_none_where_the_template_has_one(tokenizer: PreTrainedTokenizerFast) -> None:
    assert encode(pair(), tokenizer, append_eos=True) == encode(pair(), tokenizer)


def test_append_eos_needs_an_eos(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(DataError, match=r"append_eos.*no EOS token"):
        encode(pair(), make_tokenizer(eos=None), append_eos=True)


def test_special_tokens_inside_an_answer_do_not_end_it(make_tokenizer: MakeTokenizer) -> None:
    """Without an end token behind the answer, one inside it must not be taken for its end."""
    open_turn = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '\n' }}"
    problem = fault(
        pair(chosen="see <|im_end|> here", rejected="or <|im_end|> there"), make_tokenizer(open_turn)
    )
    assert "no special token ends" in problem.detail


def test_template_that_leaves_nothing_of_an_answer(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(content="m['content'].split('</think>')[-1]")
    problem = fault(pair(chosen="hm</think>"), tokenizer)
    assert problem.reason == "empty_completion"


def test_sides_that_render_alike_name_what_the_template_drops(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(content="m['content'].split('</think>')[-1]")
    problem = fault(pair(chosen="<think>one</think>yes", rejected="<think>two</think>yes"), tokenizer)
    assert (problem.reason, problem.check) == ("template", "completion_is_rendered")
    assert "the rendering lacks '<think>one</think>yes'" in problem.detail
    assert "so 'chosen' and 'rejected' render to the same tokens" in problem.detail
    blind = make_tokenizer(content="m['content'].split() | join(' ')")
    problem = fault(pair(chosen="a  b", rejected="a b"), blind)
    assert problem.reason == "equal_pair"
    assert "the chat template drops what tells them apart (whitespace" in problem.detail


# --- text that a template loses ----------------------------------------------------------------------

ASSISTANT = "m['role'] == 'assistant'"
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


def chat(*turns: str, answers: tuple[str, str] = ("yes", "no")) -> PreferenceRecord:
    """A pair whose prompt is these turns, each written as its role and its text."""
    chosen, rejected = ([message("assistant", answer)] for answer in answers)
    return preference_record("rows.jsonl:7", [message(*t.split(" ", 1)) for t in turns], chosen, rejected)


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


# --- a header that is trained ------------------------------------------------------------------------


def test_template_that_ignores_the_generation_prompt(make_tokenizer: MakeTokenizer) -> None:
    record = pair()

    def header(**options: Any) -> str:
        renderer = ChatRenderer(make_tokenizer(**options))
        return renderer.trained_header(record.prompt, record.chosen[0], record)

    assert header(ask="") == "<|im_start|>assistant"
    assert header() == ""
    # without a header there is none to train
    assert header(turn="{{ m['content'] + '<|im_end|>' }}", ask="") == ""
    refuses = "{% if not add_generation_prompt and messages[-1]['role'] == 'user' %}{{ 1 // 0 }}{% endif %}"
    assert header(before=refuses) == ""
    calls = message("assistant", "") | {"tool_calls": []}
    assert ChatRenderer(make_tokenizer(ask="")).trained_header(record.prompt, calls, record) == ""


def test_template_that_refuses_a_conversation(make_tokenizer: MakeTokenizer) -> None:
    refusal = "{{ raise_exception('System role not supported') }}"
    before = "{% if messages[0]['role'] == 'system' %}" + refusal + "{% endif %}"
    record = preference_record(
        "rows.jsonl:7",
        [message("system", "Be brief."), message("user", "Hi")],
        [message("assistant", "yes")],
        [message("assistant", "no")],
    )
    problem = fault(record, make_tokenizer(before=before))
    assert problem.reason == "template"
    assert "System role not supported" in problem.detail


def test_no_template_is_an_error_that_says_what_to_do(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(None)
    tokenizer.name_or_path = "some/base-model"
    with pytest.raises(DataError, match=r"'some/base-model' has no chat template.* Set `chat_template`"):
        encode_pairs([pair()], tokenizer, ANY_LENGTH)


def test_tools_and_template_inputs_reach_the_template(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(before="{{ tools }}|{{ mood }}|{{ place }}|")
    record = pair(tools=[{"name": "add"}], chat_template_kwargs={"mood": "calm"})
    encoded = encode(record, tokenizer, chat_template_kwargs={"mood": "wild", "place": "here"})
    assert tokenizer.decode(encoded.prompt_ids).startswith("[{'name': 'add'}]|calm|here|")


# --- tokenizers --------------------------------------------------------------------------------------


def test_one_bos(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(before="{{ bos_token }}", **BOS)
    prompt = encode(pair(), tokenizer).prompt_ids
    assert prompt.count(tokenizer.bos_token_id) == 1
    assert prompt[0] == tokenizer.bos_token_id


def test_missing_bos(make_tokenizer: MakeTokenizer) -> None:
    problem = fault(pair(), make_tokenizer(**BOS))
    assert problem.reason == "template"
    assert "begins texts with ['<s>']" in problem.detail
    assert "begins with ['<|im_start|>', 'u', 's', 'e', 'r', '\\n']" in problem.detail


def test_double_bos(make_tokenizer: MakeTokenizer) -> None:
    problem = fault(pair(), make_tokenizer(before="{{ bos_token }}{{ bos_token }}", **BOS))
    assert problem.reason == "template"
    assert "2 BOS tokens: ['<s>', '<s>', '<|im_start|>'" in problem.detail


def test_bos_is_no_end_token(make_tokenizer: MakeTokenizer) -> None:
    open_turn = "{{ m['role'] + ': ' + m['content'] }}{% if loop.index0 == 1 %}{{ bos_token }}{% endif %}"
    ask = "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    assert "no special token ends" in fault(pair(), make_tokenizer(open_turn, ask=ask, bos="<s>")).detail


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        (
            {"before": "{{ bos_token + '\n' + bos_token }}"},
            "2 BOS tokens: ['<s>', '\\n', '<s>', '<|im_start|>'",
        ),
        ({"turn": "{{ bos_token }}" + TURN, "ask": "{{ bos_token }}" + ASK}, "2 BOS tokens: "),
        ({"before": "{{ bos_token }}", "content": "m['content'] + bos_token"}, "2 BOS tokens: "),
        (
            {"before": "{{ bos_token }}", "content": f"m['content'] + (bos_token if {ASSISTANT} else '')"},
            "puts a BOS token into the answer, which the model would learn to write: ['y', 'e', 's', '<s>'",
        ),
    ],
)
def test_bos_in_places_other_than_the_head(
    make_tokenizer: MakeTokenizer, template: dict[str, Any], shown: str
) -> None:
    tokenizer = make_tokenizer(**template, **BOS)
    problem = fault(pair(chosen="yes"), tokenizer)
    assert (problem.reason, problem.check) == ("template", "one_bos")
    assert shown in problem.detail
    with pytest.raises(InvalidRows) as error:
        encode_sft([pair().chosen_as_sft()], tokenizer, ANY_LENGTH)
    assert error.value.problems[0].check == "one_bos"


def test_bos_in_an_earlier_trained_turn(make_tokenizer: MakeTokenizer) -> None:
    content = f"m['content'] + (bos_token if {ASSISTANT} and not loop.last else '')"
    tokenizer = make_tokenizer(before="{{ bos_token }}", content=content, **BOS)
    record = chat("user a", "assistant one", "user b").chosen_as_sft()
    with pytest.raises(InvalidRows, match="the rendered prompt has 2 BOS tokens: .'o', 'n', 'e', '<s>'"):
        encode_sft([record], tokenizer, ANY_LENGTH)


def test_bos_that_a_text_spells_is_no_fault_of_the_template(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(before="{{ bos_token }}", **BOS)
    encoded = encode(pair("Say <s>!", "<s> it is"), tokenizer)
    assert encoded.prompt_ids.count(tokenizer.bos_token_id) == 2
    assert encoded.chosen_ids.count(tokenizer.bos_token_id) == 1


def test_bos_that_is_also_the_end_token_may_end_turns(make_tokenizer: MakeTokenizer) -> None:
    """As GPT-2's."""
    tokenizer = make_tokenizer(turn="{{ m['content'] + eos_token }}", ask="", bos="</s>", eos="</s>")
    assert tokenizer.decode(encode(pair(), tokenizer).chosen_ids) == "yes</s>"


def test_tokenizer_that_merges_across_the_boundary(make_tokenizer: MakeTokenizer) -> None:
    """`assistant\\n` + `\\nyes`: two newlines are one token of this tokenizer, as of many."""
    tokenizer = make_tokenizer(merges=[("Ċ", "Ċ")])
    problem = fault(pair(chosen="\nyes"), tokenizer)
    assert problem.reason == "template"
    assert "'t', '\\n']" in problem.detail  # the prompt's own last tokens
    assert "'t', '\\n\\n', 'y', 'e', 's', '<|im_end|>'" in problem.detail  # and with the completion
    assert tokenizer.decode(encode(pair(chosen="yes"), tokenizer).chosen_ids) == "yes<|im_end|>"


def test_tokenizer_that_merges_the_space_before_an_answer(make_tokenizer: MakeTokenizer) -> None:
    """`assistant: ` + `yes`: a space at the prompt's end becomes part of the answer's first token."""
    ask = "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    turn = "{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}"
    tokenizer = make_tokenizer(turn, ask=ask, merges=[("Ġ", "y")])
    problem = fault(pair(), tokenizer)
    assert "the tokenizer merges the prompt's end" in problem.detail
    assert "'t', ':', ' ']" in problem.detail
    assert "'t', ':', ' y', 'e', 's', '<|im_end|>']" in problem.detail


def test_bos_of_template_and_tokenizer_is_written_once(make_tokenizer: MakeTokenizer) -> None:
    """A template that writes BOS, and a tokenizer that adds one: on every side, and in demonstrations, one."""
    tokenizer = make_tokenizer(before="{{ bos_token }}", **BOS)
    record = pair()
    (sft,), _ = encode_sft([record.chosen_as_sft()], tokenizer, ANY_LENGTH)
    encoded = encode(record, tokenizer)
    for ids in (sft.input_ids, encoded.prompt_ids + encoded.chosen_ids + encoded.rejected_ids):
        assert ids.count(tokenizer.bos_token_id) == 1


def test_prompt_of_no_tokens(make_tokenizer: MakeTokenizer) -> None:
    answers = "{% if m['role'] == 'assistant' %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
    assert "no tokens" in fault(pair(), make_tokenizer(answers, ask="")).detail


def test_tokens_beyond_the_vocabulary(tokenizer: PreTrainedTokenizerFast) -> None:
    size = len(tokenizer)
    assert encode(pair(), tokenizer, vocab_size=size)
    end = tokenizer.convert_tokens_to_ids("<|im_start|>")
    problem = fault(pair(), tokenizer, vocab_size=end)
    assert problem.reason == "vocabulary"
    assert f"token ['<|im_start|>'] has id {end}" in problem.detail
    assert f"has {end} rows" in problem.detail
    assert f"has {size} tokens" in problem.detail


# --- shared text is tokenized once -------------------------------------------------------------------

pieces = st.lists(
    st.sampled_from(["<|im_start|>", "<|im_end|>", "<s>", "<", "|>", "a", " a", "\n", "é"]), max_size=8
)


@pytest.mark.parametrize("options", [{}, {"merges": [("Ċ", "Ċ"), ("Ġ", "a")]}, BOS])
@given(shared=pieces, ends=st.lists(pieces, min_size=1, max_size=4))
def test_tokens_of_a_group_are_those_of_its_texts(
    make_tokenizer: MakeTokenizer, options: dict[str, Any], shared: list[str], ends: list[list[str]]
) -> None:
    chat = ChatRenderer(make_tokenizer(**options))
    texts = ["".join(shared + end) for end in ends]
    assert chat.tokenize_groups([texts, [], texts[:1]]) == [
        chat.tokenize(texts),
        [],
        chat.tokenize(texts[:1]),
    ]


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@given(shared=pieces, ends=st.lists(pieces, min_size=1, max_size=4))
def test_tokens_of_a_group_where_words_carry_their_space(
    scheme: str, shared: list[str], ends: list[list[str]]
) -> None:
    """As SentencePiece's: a space is put before a text's first word, which must not happen anew at a cut."""
    letters = {letter: n for n, letter in enumerate(["▁", "a", "▁a", "<", "|", ">", "\n", "é", "i", "s"])}
    backend = Tokenizer(models.BPE(vocab=letters, merges=[("▁", "a")], unk_token="<"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in ("<|im_start|>", "<|im_end|>")])
    chat = ChatRenderer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>"))
    texts = ["".join(shared + end) for end in ends]
    assert chat.tokenize_groups([texts]) == [chat.tokenize(texts)]


def test_what_a_group_shares_is_tokenized_once(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = ChatRenderer(tokenizer)
    asked: list[str] = []
    monkeypatch.setattr(chat, "tokenize", lambda texts: asked.extend(texts) or [[0]] * len(texts))
    chat.tokenize_groups([["<s>long<|im_end|>a", "<s>long<|im_end|>a yes", "<s>long<|im_end|>a no"]])
    assert asked == ["<s>long", "<|im_end|>a", "<|im_end|>a yes", "<|im_end|>a no"]


def test_tokens_that_overlap_or_take_their_spaces_cut_nothing(make_tokenizer: MakeTokenizer) -> None:
    text = "a<pad>b<|im_start|>c<|im_end|>d"

    def shared(*tokens: AddedToken) -> str:
        tokenizer = make_tokenizer()
        tokenizer.add_tokens(list(tokens), special_tokens=True)
        return ChatRenderer(tokenizer)._shared_head([text, text + "e"])

    assert shared() == "a<pad>b<|im_start|>c"
    # begins where `<|im_end|>` cannot: the cut is at its own beginning
    assert shared(AddedToken("c<|im", special=True)) == "a<pad>b<|im_start|>"
    # takes the spaces before it, and hides `<|im_end|>`: the cut is at the token before
    assert shared(AddedToken("c<|im_end|>", special=True, lstrip=True)) == "a<pad>b"
    assert shared(AddedToken("b<|im_start|>c<|im_end|>", special=True, lstrip=True)) == "a"
