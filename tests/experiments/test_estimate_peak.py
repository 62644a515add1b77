"""The estimated peak against the tensors that are alive in a real step, counted one by one."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from holdfast.experiments.estimate_memory import memory_of
from holdfast.experiments.estimate_shape import decoder_shape
from holdfast.experiments.estimate_work import work_of
from holdfast.models.tiny import tiny_bpe_tokenizer, tiny_model
from holdfast.training.config import SFTConfig
from holdfast.training.preparation import Prepared
from holdfast.training.sft_trainer import SFTTrainer

WIDTH, VOCABULARY, RANK = 256, 2_048, 8


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that are alive, and the most there were: what an allocator without waste would hold."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._alive: dict[int, Any] = {}
        for tensor in tensors:
            self._see(tensor)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor)
        return result

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        own, size = id(storage), storage.nbytes()
        if own in self._alive:
            return
        self.now += size
        self.most = max(self.most, self.now)

        def gone() -> None:
            self.now -= size
            del self._alive[own]

        self._alive[own] = weakref.finalize(storage, gone)


@pytest.mark.parametrize(
    ("settings", "rank"),
    [
        ({}, None),
        ({"bf16": True}, None),
        ({"bf16": True, "gradient_accumulation_steps": 2}, None),
        ({"bf16": True, "activation_checkpointing": True}, None),
        ({"optim": "sgd"}, None),
        ({"bf16": True, "gradient_accumulation_steps": 2}, RANK),
        ({"gradient_accumulation_steps": 2}, RANK),
    ],
    ids=["float32", "bf16", "accumulating", "checkpointing", "sgd", "lora-bf16", "lora-float32"],
)
def test_the_peak_is_what_a_step_holds(settings: dict[str, Any], rank: int | None, tmp_path: Path) -> None:
    dtype = torch.bfloat16 if rank and settings.get("bf16") else torch.float32
    model: Any = tiny_model("qwen3", VOCABULARY, hidden_size=WIDTH, layers=4, dtype=dtype)
    shape = decoder_shape(model)
    generator = torch.Generator().manual_seed(0)
    rows = datasets.Dataset.from_dict(
        {
            "input_ids": [torch.randint(300, 2_000, (141,), generator=generator).tolist() for _ in range(8)],
            "completion_mask": [[False] * 81 + [True] * 60] * 8,
            "row_index": list(range(8)),
            "row_id": list("abcdefgh"),
        }
    )
    args = SFTConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        per_device_train_batch_size=4,
        max_steps=2,
        **settings,
    )
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=Prepared(rows, {}, (1,), 2_000),
        processing_class=tiny_bpe_tokenizer(["the tide"] * 3, 320),
        peft_config=None if rank is None else {"rank": rank},
    )
    found = memory_of(trainer.model, shape, args, *work_of(rows).largest(4), rank)
    live = LiveBytes([p.data for p in trainer.model.parameters()])
    assert live.now == found.weights
    with live:
        trainer.train()
    assert found.peak == pytest.approx(live.most, rel=0.1)
