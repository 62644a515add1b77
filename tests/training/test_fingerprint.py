"""What a resumed run may not change, as digests and fields."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import CheckpointError
from holdfast.models.adapters import attach_adapter, lora_config
from holdfast.models.tiny import tiny_model
from holdfast.training.fingerprint import require_same_run, rows_digest, weights_digest, write_fingerprint


def rows_of(*prompts: list[int]) -> datasets.Dataset:
    table = {
        "prompt_ids": list(prompts),
        "chosen_ids": [[1, 2]] * len(prompts),
        "row_index": list(range(len(prompts))),
    }
    return datasets.Dataset.from_dict(table)


def test_the_digest_of_rows_sees_tokens_order_and_boundaries() -> None:
    base = rows_of([1, 2], [3])
    assert rows_digest(base) == rows_digest(rows_of([1, 2], [3]))
    assert rows_digest(base) == rows_digest(base.add_column("reference_chosen", [0.1, 0.2]))
    assert rows_digest(base) == rows_digest(rows_of([9], [1, 2], [3]).select([1, 2]))
    others = [rows_of([3], [1, 2]), rows_of([1], [2, 3]), rows_of([1, 2, 3], []), rows_of([1, 2], [4])]
    assert len({rows_digest(rows) for rows in (base, *others)}) == 5


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.data())
def test_the_digest_of_weights_sees_every_number(data: st.DataObject) -> None:
    model = tiny_model("llama", 30, hidden_size=16)
    before = weights_digest(model)
    parameter = data.draw(st.sampled_from(list(model.parameters())))
    at = data.draw(st.integers(0, parameter.numel() - 1))
    with torch.no_grad():
        value = parameter.view(-1)[at].clone()
        parameter.view(-1)[at] = torch.nextafter(value, torch.tensor(9.0))
        assert weights_digest(model) != before
        parameter.view(-1)[at] = value
    assert weights_digest(model) == before


def test_an_adapters_base_is_what_is_frozen() -> None:
    base = tiny_model("llama", 30, hidden_size=16)
    adapted = attach_adapter(base, lora_config(base, rank=2))
    before = weights_digest(adapted)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 1
    assert weights_digest(adapted) == before
    with torch.no_grad():
        next(p for p in adapted.parameters() if not p.requires_grad).add_(1)
    assert weights_digest(adapted) != before


def test_fields_that_differ_are_listed(tmp_path: Path) -> None:
    write_fingerprint({"a": 1, "b": [1, 2], "c": "x", "gone": None}, tmp_path)
    require_same_run({"a": 1, "b": [1, 2], "c": "x", "gone": None}, tmp_path)
    with pytest.raises(CheckpointError) as refused:
        require_same_run({"a": 2, "b": [1, 2], "c": "y", "new": 0.5}, tmp_path)
    assert str(refused.value).splitlines()[1:-1] == [
        "  a: 1 in the checkpoint, 2 now",
        '  c: "x" in the checkpoint, "y" now',
        "  gone: null in the checkpoint, absent now",
        "  new: absent in the checkpoint, 0.5 now",
    ]
    (tmp_path / "fingerprint.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"fingerprint\.json' cannot be read"):
        require_same_run({}, tmp_path)
