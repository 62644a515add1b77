"""Chat templates that would train something else than the rows, and templates that attack: errors that show the tokens,
and no way out of the sandbox.
"""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from holdfast import SFTConfig, SFTTrainer
from holdfast.data import rendering
from holdfast.errors import DataError
from holdfast.models.tiny import tiny_model
from tests.data.conftest import ASK, TURN, build_tokenizer
from tests.faults.commands import Ended, copied, holdfast, refuse_to_load_models, set_keys, stage
from tests.faults.whole_runs import rows_file

Refused = Callable[..., Ended]
# As the start model's own: a turn ends with <|im_end|>, which is its EOS.
TEMPLATE = "{% for m in messages %}" + TURN.replace("CONTENT", "m['content']") + "{% endfor %}" + ASK


@pytest.fixture
def refused(start: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Runs with a template that must be refused before a model is loaded; by check too."""
    asked = refuse_to_load_models(monkeypatch)

    def run(template: str | bytes, *settings: str) -> Ended:
        file = tmp_path / "own.jinja"
        file.write_bytes(template if isinstance(template, bytes) else template.encode())
        ended = stage("align", start, rows, tmp_path / "run", f"model.chat_template={file}", *settings)
        assert ended.code == 2
        assert asked == []
        assert not (tmp_path / "run").exists()
        return ended

    return run


# ---- what would train something else


def test_the_template_is_sound(start: Path, rows: Path, tmp_path: Path) -> None:
    """What the others spoil: without that, they could be refused for anything."""
    file = tmp_path / "own.jinja"
    file.write_text(TEMPLATE)
    ended = stage("align", start, rows, tmp_path / "run", f"model.chat_template={file}")
    assert ended.code == 0, ended.error


def test_a_second_bos(tmp_path: Path) -> None:
    """Twice at the head, in the answer, or nowhere: the message shows the tokens."""
    twice = build_tokenizer(bos="<s>", before="{{ bos_token }}{{ bos_token }}", adds_bos=True)
    assert "the rendered prompt has 2 BOS tokens: ['<s>', '<s>', '<|im_start|>'" in refusal_of(
        twice, tmp_path
    )
    answer = build_tokenizer(
        TURN.replace("CONTENT", "(bos_token if m['role'] == 'assistant' else '') + m['content']"),
        bos="<s>",
        before="{{ bos_token }}",
        adds_bos=True,
    )
    assert "a BOS token into the answer" in refusal_of(answer, tmp_path)
    absent = build_tokenizer(bos="<s>", adds_bos=True)
    assert (
        "begins texts with ['<s>'], but the rendered prompt begins with ['<|im_start|>', 'u'"
        in refusal_of(absent, tmp_path)
    )


def refusal_of(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> str:
    """Why the trainer refuses rows by this tokenizer."""
    args = SFTConfig(
        output_dir=str(tmp_path / "run"), use_cpu=True, dataset_num_proc=1, cache_dir=str(tmp_path / "cache")
    )
    with pytest.raises(DataError) as raised:
        SFTTrainer(
            model=tiny_model("llama", len(tokenizer), hidden_size=16, layers=1),
            args=args,
            train_dataset=[{"prompt": "the tide?", "completion": "in"}],
            processing_class=tokenizer,
        )
    return str(raised.value)


def test_no_end_token(refused: Refused) -> None:
    ended = refused(TEMPLATE.replace("<|im_end|>", ""))
    assert "no special token ends the assistant's turn" in ended.error
    assert "Its last tokens: ['" in ended.error
    assert "append_eos" in ended.error


def test_a_prompt_that_is_no_prefix(refused: Refused) -> None:
    ended = refused(
        TEMPLATE.replace("m['content']", "(m['content'] if add_generation_prompt else m['content'][1:])")
    )
    assert "the prompt as rendered for generation is not how the whole conversation begins" in ended.error
    assert "<|im_start|>user" in ended.error  # where the two part


def test_tokens_that_merge_across_the_border(tmp_path: Path) -> None:
    """As texts the prompt is a prefix, as tokens it is not."""
    ask = "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    turn = "{{ m['role'] + ':' + CONTENT + '<|im_end|>' }}"
    tokenizer = build_tokenizer(turn, ask=ask, merges=[(":", "i")])
    words = refusal_of(tokenizer, tmp_path)
    assert "the tokenizer merges the prompt's end with the completion's beginning" in words
    assert "':']" in words
    assert "':i'" in words


def test_no_template(start: Path, rows: Path, tmp_path: Path) -> None:
    bare = copied(start, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    for ended in (stage("align", bare, rows, tmp_path / "run"), holdfast("check", rows, "--model", bare)):
        assert ended.code == 2
        assert "has no chat template, and none is made up for it" in ended.error
        assert "model.chat_template" in ended.error


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("", "has no chat template"),
        ("{# nothing #}", "renders the prompt to no tokens"),
        ("{% for m in messages %}", "TemplateSyntaxError"),
        ("{{ nowhere.at_all }}" + TEMPLATE, "UndefinedError"),
        ("{{ 1 / 0 }}" + TEMPLATE, "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}" + TEMPLATE, "RecursionError"),
        (TEMPLATE.replace("in messages", "in messages[:1]"), "does not render the answer"),
        (TEMPLATE.replace("m['content']", "m['content'][:1]"), "the rendering lacks"),
        (b"\xff\xfe" + TEMPLATE.encode(), "cannot be read as UTF-8 text"),
        ("{{ raise_exception('x' * 1000000) }}", "TemplateError: xxx"),
    ],
)
def test_templates_that_do_not_work(refused: Refused, template: str | bytes, words: str) -> None:
    ended = refused(template)
    assert words in ended.error
    assert len(ended.error) < 20_000


def test_templates_in_a_form_that_is_none(start: Path, rows: Path, tmp_path: Path) -> None:
    for number, value in enumerate((["x"], {"a": "b"}, [{"name": "x", "template": TEMPLATE}], 5)):
        folder = copied(start, tmp_path / f"model-{number}")
        (folder / "chat_template.jinja").unlink()
        set_keys(folder / "tokenizer_config.json", chat_template=value)
        ended = stage("align", folder, rows, tmp_path / "run")
        assert ended.code == 2
        assert "template" in ended.error or "tokenizer" in ended.error


# ---- what attacks


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
        "{{ lipsum.__globals__['os'].system('touch MARK') }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['os'].system('touch MARK') }}",
        "{{ messages.append(messages[0]) }}",
        "{{ '%s'.__mod__.__self__.__class__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.system('touch MARK') }}",
        "{% for i in range(10**12) %}{% endfor %}",
    ],
)
def test_no_way_out_of_the_sandbox(refused: Refused, tmp_path: Path, attack: str) -> None:
    ended = refused(attack.replace("MARK", str(tmp_path / "mark")) + TEMPLATE)
    assert "the chat template refuses this conversation" in ended.error
    assert not (tmp_path / "mark").exists()


def test_a_template_without_end_is_ended(
    refused: Refused, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "LONGEST", 0.2)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    ended = refused(loops + TEMPLATE)
    assert ended.error.startswith(f"{rows}:1: the chat template of ")
    assert "may never come to an end" in ended.error


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone limits memory")
def test_a_template_that_asks_for_all_memory_gets_none(
    refused: Refused, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "MOST_MEMORY", 1 << 30)
    ended = refused("{{ 'x' * (messages|length * 10**10) }}" + TEMPLATE)
    assert ended.error.startswith(f"{rows}:1: the chat template of ")
    assert "asks for more than 1 GiB of memory" in ended.error


def test_a_template_that_writes_a_book_is_refused(refused: Refused, rows: Path) -> None:
    ended = refused("{{ 'x' * (messages|length * 10**7) }}" + TEMPLATE)
    assert ended.error.startswith(f"{rows}:1: the chat template of ")
    assert "characters of a conversation of" in ended.error


def test_a_template_without_end_is_ended_in_other_processes(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "LONGEST", 0.2)
    file = tmp_path / "own.jinja"
    file.write_text(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}" + TEMPLATE
    )
    many = rows_file(tmp_path / "rows.jsonl", 600)
    ended = holdfast("check", many, "--model", start, "--chat-template", file, "--num-proc", "2")
    assert ended.code == 2
    assert "may never come to an end" in ended.error


@pytest.mark.parametrize(
    "name",
    [
        "chat_template",
        "tokenize",
        "messages",
        "self",
        "return_tensors",
        "truncation",
        "add_generation_prompt",
    ],
)
def test_rows_set_inputs_of_the_template_alone(start: Path, tmp_path: Path, name: str) -> None:
    row = {"prompt": "a?", "chosen": "b", "rejected": "c"}
    kwargs = {"chat_template_kwargs": {name: "{{ messages }}"}}
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(one) + "\n" for one in (row, row | kwargs)))
    ended = stage("align", start, source, tmp_path / "run")
    assert ended.code == 2
    assert (
        f"  {source}:2: wrong_type: 'chat_template_kwargs': '{name}' is set by what renders the row"
        in ended.error
    )
    whole = stage("align", start, source, tmp_path / "run", f"model.chat_template_kwargs={{{name}: x}}")
    assert whole.code == 2
    assert f"chat_template_kwargs: '{name}' is set by" in whole.error


def test_a_template_file_that_is_a_pickle(refused: Refused, tmp_path: Path) -> None:
    assert "cannot be read as UTF-8 text" in refused(pickle.dumps({"a": 1})).error
