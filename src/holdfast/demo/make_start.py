"""Make the demo's starting model again: `python -m holdfast.demo.make_start FOLDER` (about ten minutes, two cores).

A Qwen3-shaped model of under a million parameters, from random weights, on demonstrations of the tiny world of which
a third are wrong: so it knows the format and most of the tasks, and there is something left for preferences to mend.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from holdfast.demo.world import sft_rows, tiny_tokenizer
from holdfast.models.export import save_final
from holdfast.models.tiny import tiny_model
from holdfast.training.config import SFTConfig
from holdfast.training.sft_trainer import SFTTrainer


def make_start(folder: Path, *, steps: int = 2000, seed: int = 0) -> None:
    """Train and save the model; weights are stored in bfloat16, which halves what the package carries."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(
        "qwen3",
        len(tokenizer),
        hidden_size=128,
        layers=4,
        seed=seed,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=scratch,
                max_steps=steps,
                per_device_train_batch_size=64,
                learning_rate=1e-3,
                lr_scheduler_type="cosine",
                warmup_steps=0.05,
                logging_steps=50,
                save_strategy="no",
                max_length=128,
                seed=seed,
                use_cpu=True,
            ),
            train_dataset=sft_rows(64 * steps, seed, wrong_share=0.35),
            processing_class=tokenizer,
        )
        trainer.train()
    save_final(model, tokenizer, folder, dtype=torch.bfloat16)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    make_start(given.folder, steps=given.steps, seed=given.seed)
