"""What the step benchmarks train: models of random weights in real families' shapes, and rows of known lengths.

Real rows are the 300 chat pairs of `../shared/data/preference/dpo_en_demo.json`, where they are; synthetic ones are
made-up words, their number drawn around the means of the real rows. Both are text, so that every trainer's own
preparation can read them, and are tokenized by a small BPE trained on them.
"""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

REAL_ROWS = Path(__file__).resolve().parents[2] / "shared" / "data" / "preference" / "dpo_en_demo.json"


# ---- models


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a decoder; `family` as in `holdfast.models.tiny`."""

    family: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    feed_forward: int
    sliding_window: int | None = None

    def config(self, max_length: int) -> Any:
        """The transformers configuration, with positions for `max_length` tokens."""
        from holdfast.models.tiny import tiny_config

        settings: dict[str, Any] = {
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.feed_forward,
            "max_position_embeddings": max(2048, max_length),
        }
        if self.sliding_window is not None:
            settings |= {
                "sliding_window": self.sliding_window,
                "query_pre_attn_scalar": self.head_dim,
                "layer_types": [
                    "full_attention" if n % 6 == 5 else "sliding_attention" for n in range(self.layers)
                ],
            }
        return tiny_config(self.family, self.vocab, hidden_size=self.hidden, layers=self.layers, **settings)


MODELS = {
    "toy": ModelShape("qwen3", 1024, 64, 2, 4, 2, 16, 128),
    "small": ModelShape("qwen3", 32_000, 256, 6, 4, 2, 64, 768),
    "41m": ModelShape("qwen3", 32_000, 512, 8, 8, 4, 64, 1536),
    "qwen3-0.6b": ModelShape("qwen3", 151_936, 1024, 28, 16, 8, 128, 3072),
    "qwen3-4b": ModelShape("qwen3", 151_936, 2560, 36, 32, 8, 128, 9728),
    "gemma3-4b": ModelShape("gemma3", 262_208, 2560, 34, 8, 4, 256, 10_240, sliding_window=1024),
}


def chosen_shape(name: str, family: str | None, **numbers: int | None) -> dict[str, Any]:
    """A named shape with another family or other numbers, where they are given; as a mapping for a case."""
    changes: dict[str, Any] = {key: value for key, value in numbers.items() if value is not None}
    if family is not None:
        changes |= {"family": family, "sliding_window": 512 if family == "gemma3" else None}
    return asdict(replace(MODELS[name], **changes))


def build_model(case: dict[str, Any]) -> Any:
    """A causal LM of the case's shape: the same random weights in every process, LoRA on it where asked for."""
    import torch
    from transformers import AutoModelForCausalLM

    mixed = case["dtype"] == "bfloat16"
    torch.manual_seed(case["seed"])
    with torch.device(case["device"]):
        model = AutoModelForCausalLM.from_config(
            ModelShape(**case["model"]).config(case["max_length"]),
            attn_implementation=case["attention"],
            # Trained weights are float32 under mixed precision; frozen ones are stored as they are used.
            dtype=torch.bfloat16 if mixed and case["lora"] else torch.float32,
        )
    if case["lora"]:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(case["seed"])
        adapter = LoraConfig(task_type="CAUSAL_LM", r=64, lora_alpha=128, target_modules="all-linear")
        model = get_peft_model(model, adapter)
    return model.train()


# ---- rows


@dataclass(frozen=True)
class DataShape:
    """Which pairs: how long they may be, and the means that synthetic ones are drawn around, in tokens.

    Attributes:
        pairs: pairs (or demonstrations) a micro-batch.
        turns: least number of messages in a prompt.
        longest_answer: of either side; None for no limit.
    """

    max_length: int
    pairs: int
    turns: int
    longest_answer: int | None
    means: tuple[int, int, int]


SHAPES = {
    "chat": DataShape(1024, 4, 1, None, (400, 290, 314)),
    "short": DataShape(512, 8, 2, 150, (188, 57, 86)),
}


def read_rows(source: str, shape: DataShape, words: int, seed: int) -> tuple[str, list[dict[str, Any]]]:
    """`(where they are from, rows)`; a row is `{"prompt": messages, "chosen": text, "rejected": text}`.

    `source` is `auto` (the real rows where they are, else synthetic ones), `synthetic`, or a JSON file of rows laid out
    like the real ones (`conversations`, `chosen`, `rejected`).
    """
    if source == "auto":
        source = str(REAL_ROWS) if REAL_ROWS.is_file() else "synthetic"
    if source == "synthetic":
        return "synthetic", _made_up(shape, words, seed)
    roles = {"system": "system", "human": "user", "gpt": "assistant"}
    rows = [
        {
            "prompt": [{"role": roles[m["from"]], "content": m["value"]} for m in row["conversations"]],
            "chosen": row["chosen"]["value"],
            "rejected": row["rejected"]["value"],
        }
        for row in json.loads(Path(source).read_text(encoding="utf-8"))
    ]
    random.Random(seed).shuffle(rows)
    return Path(source).name, rows


def _made_up(shape: DataShape, words: int, seed: int, rows: int = 400) -> list[dict[str, Any]]:
    """Rows of made-up words, their number log-normal around the shape's means."""
    draw = random.Random(seed)
    vocabulary = ["".join(draw.choices("etaoinshrdlucmfwyp", k=draw.randint(2, 9))) for _ in range(words)]
    frequency = list(itertools.accumulate(1 / rank for rank in range(1, words + 1)))

    def text(mean: float) -> str:
        spread = 0.6
        count = max(4, round(mean * draw.lognormvariate(-(spread**2) / 2, spread)))
        return " ".join(draw.choices(vocabulary, cum_weights=frequency, k=count))

    prompt, chosen, rejected = shape.means
    messages = 2 * shape.turns - 1  # the last one is the user's
    return [
        {
            "prompt": [
                {"role": ("user", "assistant")[n % 2], "content": text(prompt / messages)}
                for n in range(messages)
            ],
            "chosen": text(chosen),
            "rejected": text(rejected),
        }
        for _ in range(rows)
    ]


def train_tokenizer(rows: list[dict[str, Any]], vocab: int, folder: Path) -> Any:
    """A byte-level BPE trained on the rows' texts, saved in `folder`."""
    from holdfast.models.tiny import tiny_bpe_tokenizer

    texts = [message["content"] for row in rows for message in row["prompt"]]
    texts += [row[side] for row in rows for side in ("chosen", "rejected")]
    tokenizer = tiny_bpe_tokenizer(texts, vocab, max_length=1 << 20)
    tokenizer.save_pretrained(folder)
    return tokenizer


def limits(case: dict[str, Any]) -> dict[str, int]:
    """The case's limits as holdfast's settings; long prompts are cut to half."""
    return {"max_length": case["max_length"], "max_prompt_length": case["max_length"] // 2}


def select(rows: list[dict[str, Any]], tokenizer: Any, shape: DataShape, count: int) -> list[dict[str, Any]]:
    """The first `count` rows that have the shape, over again where there are too few.

    Rows whose answers agree in all that a cut could leave of them are passed over: no pair is left of them.
    """
    fitting = []
    for row in rows:
        answers = [tokenizer(row[side])["input_ids"] for side in ("chosen", "rejected")]
        within = shape.longest_answer is None or max(map(len, answers)) <= shape.longest_answer
        differ = len({tuple(ids[: shape.max_length // 2 - 1]) for ids in answers}) == 2
        if len(row["prompt"]) >= shape.turns and within and differ:
            fitting.append(row)
    if not fitting:
        raise SystemExit(f"none of {len(rows)} rows has the shape {shape}: give other rows or another shape")
    return list(itertools.islice(itertools.cycle(fitting), count))
