"""`probe` from rows to report: figures against a computation of their own, regimes at both ends, invariances."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.capability import CapabilityReport, probe
from holdfast.data.validation import InvalidRows
from holdfast.demo.world import preference_rows, sft_rows
from holdfast.errors import ConfigError, DataError
from holdfast.experiments.config import load_config
from holdfast.models.tiny import tiny_model
from tests.capability.conftest import cipher_rows

ROWS = 60


def probed(model: Any, tokenizer: Any, rows: Any, **options: Any) -> CapabilityReport:
    return probe(model, tokenizer, rows, **{"max_length": 128, "num_proc": 1} | options)


def independent(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]
) -> list[np.ndarray]:
    """Each row's target probabilities: rendered by the template, read whole, softmax in float64."""
    found = []
    for row in rows:
        turns = [{"role": "user", "content": row["prompt"]}]
        answer = {"role": "assistant", "content": row.get("completion", row.get("chosen"))}
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template([*turns, answer], tokenize=False)
        start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        ids = torch.tensor([tokenizer(whole, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            logps = model.eval()(input_ids=ids).logits[0].double().log_softmax(-1)
        targets = ids[0, start:, None]
        found.append(logps[start - 1 : -1].gather(-1, targets)[:, 0].exp().numpy())
    return found


def test_figures_are_those_of_an_independent_computation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = sft_rows(ROWS, seed=3, wrong_share=0.3)
    truth = independent(model, tokenizer, rows)
    p = np.concatenate(truth)
    found = probed(model, tokenizer, rows).every
    assert (found.tokens, found.rows) == (len(p), ROWS)
    near = {"rel": 0, "abs": 1e-5}
    assert found.mean_probability.value == pytest.approx(p.mean(), **near)
    assert found.row_mean_probability.value == pytest.approx(np.mean([row.mean() for row in truth]), **near)
    assert found.mean_logp.value == pytest.approx(np.log(p).mean(), rel=0, abs=1e-4)
    assert found.share_confident.value == pytest.approx((p > 0.55).mean(), rel=0, abs=1.5 / len(p))
    np.testing.assert_allclose(found.percentiles, np.percentile(p, range(101)), rtol=0, atol=1e-4)
    assert np.abs(np.array(found.histogram) - np.histogram(p, 100, (0, 1))[0]).sum() <= 4
    generator = np.random.default_rng(99)  # other draws: the same interval but for their number
    draws = generator.integers(0, ROWS, (4000, ROWS))
    sums, counts = np.array([row.sum() for row in truth]), np.array([len(row) for row in truth])
    low, high = np.quantile(sums[draws].sum(1) / counts[draws].sum(1), [0.025, 0.975])
    assert found.mean_probability.low == pytest.approx(low, abs=0.15 * (high - low))
    assert found.mean_probability.high == pytest.approx(high, abs=0.15 * (high - low))


def test_the_chance_of_a_whole_answer_is_the_product(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = sft_rows(20, seed=3)
    truth = np.mean([row.prod() for row in independent(model, tokenizer, rows)])
    assert probed(model, tokenizer, rows).whole_answer.value == pytest.approx(truth, abs=1e-5)


def test_a_pair_is_read_by_its_chosen_side(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = preference_rows(20, seed=1)
    truth = np.concatenate(independent(model, tokenizer, rows))
    found = probed(model, tokenizer, rows)
    assert found.every.tokens == len(truth)
    assert found.every.mean_probability.value == pytest.approx(truth.mean(), abs=1e-5)


@pytest.mark.parametrize("wrong_share", [0.0, 0.4])
def test_trained_tasks_are_strong_with_and_without_noise(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, wrong_share: float
) -> None:
    found = probed(model, tokenizer, sft_rows(300, seed=5, wrong_share=wrong_share))
    assert found.regime.name == "strong"
    assert found.recommendation.objective == {"name": "p"}


def test_an_unseen_cipher_is_weak_although_its_plain_mean_is_high(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    found = probed(model, tokenizer, cipher_rows(300))
    assert found.regime.name == "weak"
    assert found.recommendation.objective == {"name": "nll"}
    assert found.informative is not None
    assert found.every.mean_probability.value is not None
    assert found.every.mean_probability.value > 0.7  # the format drowns it
    assert found.informative.mean_probability.high is not None
    assert found.informative.mean_probability.high < 0.4


def test_known_answers_under_another_key_are_not_left_to_p(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """As strong as under the key it knows; but 1 − p would never learn the new one."""
    rows = sft_rows(300, seed=5, wrong_share=0.0)
    renamed = [row | {"completion": row["completion"].replace('"answer"', '"result"')} for row in rows]
    known, new = probed(model, tokenizer, rows), probed(model, tokenizer, renamed)
    assert (known.regime.name, new.regime.name) == ("strong", "strong")
    assert known.format_ruled_out.value == pytest.approx(0.0, abs=0.005)
    assert new.format_ruled_out.value is not None
    assert new.format_ruled_out.value > 0.3
    assert known.recommendation.objective == {"name": "p"}
    assert new.recommendation.objective == {"name": "f_alpha", "alpha": 0.3}


@pytest.mark.parametrize("count", [1, 9])
def test_fewer_than_ten_prompts_decide_nothing(
    count: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """A task it has never met would pass for known: in so few rows its format is not recognised."""
    rows = cipher_rows(count)
    for given in (rows, rows * 3):
        found = probed(model, tokenizer, given)
        assert found.capability.value is not None
        assert found.regime.name == "undecided"
        assert found.recommendation.objective == {"name": "nll"}
        assert found.probed.prompts == count


def test_copies_of_rows_change_no_figure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = sft_rows(15, seed=5, wrong_share=0.0)
    once, often = probed(model, tokenizer, rows), probed(model, tokenizer, rows * 4)
    assert often.probed.prompts == once.probed.prompts
    assert often.every.tokens == 4 * once.every.tokens
    assert once.informative is not None
    assert often.informative is not None
    for one, four in (
        (once.capability, often.capability),
        (once.guess, often.guess),
        (once.whole_answer, often.whole_answer),
        (once.format_ruled_out, often.format_ruled_out),
        (once.every.mean_probability, often.every.mean_probability),
        (once.informative.row_mean_probability, often.informative.row_mean_probability),
        (once.by_part[0].mean_probability, often.by_part[0].mean_probability),
    ):
        assert (four.value, four.low, four.high) == pytest.approx((one.value, one.low, one.high), abs=1e-6)
    assert once.capability.low is not None


def test_a_coin_flip_that_is_only_guessed_is_weak(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """A probability near a half, and nothing known: the guess without the prompt does as well."""
    rows = [
        {"prompt": f"is {n} odd?", "completion": f'{{"answer": {"true" if n % 2 else "false"}}}'}
        for n in range(200)
    ]
    found = probed(model, tokenizer, rows)
    assert found.guess.value == pytest.approx(0.5, abs=0.01)
    assert found.regime.name == "weak"


def test_an_untrained_model_is_weak(tokenizer: PreTrainedTokenizerBase) -> None:
    found = probed(tiny_model("llama", len(tokenizer)), tokenizer, sft_rows(100, 0))
    assert found.regime.name == "weak"


def test_answers_that_are_all_alike_decide_nothing(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [{"prompt": f"what is {n} + 1?", "completion": "ok"} for n in range(20)]
    found = probed(model, tokenizer, rows)
    assert found.informative is None
    assert found.capability.value is None
    assert found.regime.name == "undecided"
    assert found.hardest == ()


def test_the_same_arguments_give_the_same_report_and_batches_only_round(
    start: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    rows = sft_rows(80, seed=2)
    first = probed(model, tokenizer, rows, limit=40, seed=1)
    assert first == probed(model, tokenizer, rows, limit=40, seed=1)
    assert first.probed.sampled == 40
    assert first.probed.digest != probed(model, tokenizer, rows, limit=40, seed=2).probed.digest
    other = probed(model, tokenizer, rows, limit=40, seed=1, batch_size=3)
    assert other.probed == first.probed
    np.testing.assert_allclose(other.every.percentiles, first.every.percentiles, rtol=0, atol=1e-5)
    by_name = probed(start, None, rows, limit=40, seed=1)
    assert by_name.probed.model == start
    assert by_name.probed.dtype == "float32"
    assert by_name.every == first.every


def test_sources_are_files_or_a_column(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    known, unknown = sft_rows(20, seed=0), cipher_rows(20)
    for name, rows in (("known", known), ("unknown", unknown)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    by_file = probed(model, tokenizer, tmp_path).by_source
    assert [Path(group.name).name for group in by_file] == ["known.jsonl", "unknown.jsonl"]
    assert [group.tokens for group in by_file] == [
        sum(len(row["completion"]) + 1 for row in rows) for rows in (known, unknown)
    ]
    means = [group.mean_probability.value for group in by_file]
    assert means[0] > means[1]  # type: ignore[operator]

    labelled = [row | {"source": "a" if n % 4 else "b", "kind": n % 2} for n, row in enumerate(known)]
    found = probed(model, tokenizer, labelled).by_source
    assert [group.name for group in found] == ["a", "b"]
    assert sum(group.tokens for group in found) == by_file[0].tokens
    by_kind = probed(model, tokenizer, labelled, source_column="kind").by_source
    assert {group.name for group in by_kind} == {"0", "1"}
    with pytest.raises(DataError, match="source_column 'kin'.*did you mean 'kind'"):
        probed(model, tokenizer, labelled, source_column="kin")


def test_raw_text_is_all_target_but_its_first_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    found = probed(model, tokenizer, [{"text": "reverse abc"}, {"text": "what is it?"}])
    assert found.every.tokens == 2 * 10
    ids = torch.tensor([tokenizer("reverse abc", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        logps = model.eval()(input_ids=ids).logits[0].double().log_softmax(-1)
    p = logps[:-1].gather(-1, ids[0, 1:, None]).exp().mean()
    alone = probed(model, tokenizer, [{"text": "reverse abc"}])
    assert alone.every.mean_probability.value == pytest.approx(float(p), abs=1e-5)
    assert alone.every.mean_probability.low is None  # one row has no interval


def test_every_turn_may_be_a_target(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    turns = [("user", "a"), ("assistant", "bc"), ("user", "d"), ("assistant", "e")]
    rows = [{"messages": [{"role": role, "content": text} for role, text in turns]}] * 2
    assert probed(model, tokenizer, rows).every.tokens == 2 * 2
    assert probed(model, tokenizer, rows, train_on="all").every.tokens == 2 * (3 + 2)


def test_the_hardest_rows_are_those_of_least_probability(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = sft_rows(60, seed=4, wrong_share=0.0)
    rows[17] = rows[17] | {"completion": '{"answer": "zzzz"}'}
    found = probed(model, tokenizer, rows)
    assert found.hardest[0].where == "dataset row 18"
    means = [row.mean_probability for row in found.hardest]
    assert means == sorted(means)


def test_long_answers_are_cut_and_counted(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"prompt": "a", "completion": "b" * 60}, {"prompt": "a", "completion": "b"}]
    found = probed(model, tokenizer, rows, max_length=32)
    assert found.probed.cut == 1
    assert found.every.tokens == 2 + (32 - 4)  # <user> a <end> <assistant> before both


def test_the_yaml_of_a_file_loads(start: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, sft_rows(12, 0))), encoding="utf-8")
    found = probed(start, None, tmp_path / "rows.jsonl")
    (tmp_path / "run.yaml").write_text(found.recommendation.yaml, encoding="utf-8")
    config = load_config(tmp_path / "run.yaml")
    assert config.data.source == str(tmp_path / "rows.jsonl")
    assert (config.model.name, config.data.max_length) == (start, 128)


def test_bad_rows_are_refused_or_left_out(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    rows: list[Any] = [*sft_rows(12, 0), {"prompt": "", "completion": ""}]
    with pytest.raises(InvalidRows, match="row 13"):
        probed(model, tokenizer, rows)
    found = probed(model, tokenizer, rows, validation="lenient")
    assert (found.probed.rows, found.probed.refused) == (12, 1)
    with pytest.raises(ConfigError, match="at least 1 must be probed"):
        probed(model, tokenizer, rows, limit=0)
    for seed in (-1, 2**32):
        with pytest.raises(ConfigError, match="seed: must be at least 0 and below"):
            probed(model, tokenizer, rows, seed=seed)


def test_rows_may_be_an_iterator(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = sft_rows(12, 0)
    assert probed(model, tokenizer, iter(rows)).every == probed(model, tokenizer, rows).every
