"""Time and peak memory of checking preference rows, as rows and processes grow.

    python benchmarks/data_check.py
    python benchmarks/data_check.py --rows 10000 20000 --processes 1 2 4

Writes rows of words to JSONL, one in a hundred spoiled in one of a dozen ways, and checks them: as text, and
rendered and tokenized by a byte-level BPE trained on the first of them. Every measurement is a process of its own
that must find exactly the spoiled rows. Memory is the peak of the checking process, and of the largest of those it
started, over what the first holds once the libraries are loaded (Linux only); flat means that it stays as the rows
grow.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPOILED_EVERY = 100


def as_line(row: Any) -> bytes:
    return json.dumps(row).encode()


# A dozen ways to spoil the row with this prompt and these completions.
SPOIL: list[Callable[[str, str, str], bytes]] = [
    lambda p, c, r: as_line({"prompt": p, "chosen": c, "rejected": r})[:-9],
    lambda p, c, r: as_line({"prompt": p, "chosen": c, "rejected": r})[:-2] + b'\xff"}',
    lambda p, c, r: as_line({"prompt": p, "chosen": c + "\ud800", "rejected": r}),
    lambda p, c, r: as_line({"prompt": p, "chosen": c}),
    lambda p, c, r: as_line({"prompt": p, "chosen": c, "rejected": 5}),
    lambda p, c, r: as_line([p, c, r]),
    lambda p, c, r: as_line({"prompt": p, "chosen": c, "rejected": ""}),
    lambda p, c, r: as_line({"prompt": p, "chosen": " \n", "rejected": r}),
    lambda p, c, r: as_line({"prompt": p, "chosen": c, "rejected": c + " "}),
    lambda p, c, r: as_line({"prompt": " ", "chosen": c, "rejected": r}),
    lambda p, c, r: as_line({"prompt": [{"role": "poet", "content": p}], "chosen": c, "rejected": r}),
    lambda p, c, r: as_line({"prompt": [{"role": "assistant", "content": p}], "chosen": c, "rejected": r}),
]


def write_rows(path: Path, rows: int, seed: int) -> None:
    """Rows of made-up words, their number drawn log-normally around 60 a prompt and 120 an answer."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("etaoinshrdlucmfwyp", k=draw.randint(2, 9))) for _ in range(5000)]
    frequency = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))

    def text(around: int) -> str:
        count = min(1500, 1 + int(around * draw.lognormvariate(0, 0.7)))
        return " ".join(draw.choices(words, cum_weights=frequency, k=count))

    with path.open("wb") as file:
        for number in range(1, rows + 1):
            prompt, chosen, rejected = f"{number}: {text(60)}?", text(120), text(120)
            if number % SPOILED_EVERY == 0:
                line = SPOIL[number // SPOILED_EVERY % len(SPOIL)](prompt, chosen, rejected)
            else:
                line = as_line({"prompt": prompt, "chosen": chosen, "rejected": rejected})
            file.write(line + b"\n")


def write_tokenizer(path: Path, texts: Path, vocab: int) -> None:
    """A byte-level BPE trained on the first rows, with ChatML turns."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    with texts.open("rb") as file:
        sample = [line.decode("utf-8", "replace") for line in itertools.islice(file, 2000)]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, initial_alphabet=alphabet, special_tokens=specials, show_progress=False
    )
    backend.train_from_iterator(sample, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: seconds and peak bytes of one check."""
    from transformers import PreTrainedTokenizerFast

    from holdfast.data.check import check_source
    from holdfast.data.lengths import LengthRule

    tokenizer = PreTrainedTokenizerFast.from_pretrained(case["tokenizer"]) if case["tokens"] else None
    options: dict[str, Any] = {
        "tokenizer": tokenizer,
        "rule": LengthRule(1024, 512) if case["tokens"] else None,
    }
    check_source([{"prompt": "a", "chosen": "b", "rejected": "c"}], **options)

    memory = harness.PeakMemory("cpu")
    memory.start()
    report = check_source(
        case["source"], num_proc=case["processes"], quarantine=case["quarantine"], **options
    )
    spoiled = case["rows"] // SPOILED_EVERY
    assert (report.rows, sum(report.refused.values())) == (case["rows"], spoiled), (
        "other rows than the spoiled"
    )
    with Path(case["quarantine"]).open(encoding="ascii") as file:
        places = [json.loads(line)["where"] for line in file]
    assert places == [f"{case['source']}:{SPOILED_EVERY * n}" for n in range(1, spoiled + 1)]
    return {
        "seconds": report.seconds,
        "loaded_bytes": memory.before,
        "peak_bytes": memory.read()["grown_bytes"],
        "peak_bytes_of_a_child": max(
            0, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 - memory.before
        ),
        "mean_lengths": {side: round(found.mean, 1) for side, found in report.lengths.items()},
        "digest": report.digest,
    }


def in_own_process(case: dict[str, Any]) -> dict[str, Any]:
    found = harness.in_own_process(__file__, case)
    if "failed" in found:
        raise SystemExit(f"{case}\n{found['failed']}")
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[25_000, 50_000, 100_000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--vocab", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/data_check-DATE.json")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.case:
        print(json.dumps(measure(args.case)))
        return
    report = harness.report_header("data_check", args)
    table = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for rows in args.rows:
            write_rows(folder / f"{rows}.jsonl", rows, args.seed)
        write_tokenizer(folder / "tokenizer", folder / f"{args.rows[0]}.jsonl", args.vocab)
        size = (folder / f"{args.rows[-1]}.jsonl").stat().st_size / args.rows[-1]
        print(
            f"{size / 1000:.1f} kB a row, 1 in {SPOILED_EVERY} spoiled; memory over what the libraries hold\n"
        )
        print(
            f"{'checked as':10} {'rows':>8} {'processes':>9} {'seconds':>8} {'rows/s':>8} {'MB':>6} {'MB, child':>9}"
        )
        for tokens, rows, processes in itertools.product([False, True], args.rows, args.processes):
            case = {"tokens": tokens, "rows": rows, "processes": processes}
            files = {
                "source": str(folder / f"{rows}.jsonl"),
                "tokenizer": str(folder / "tokenizer"),
                "quarantine": str(folder / "quarantine.jsonl"),
            }
            table.append(case | in_own_process(case | files))
            row = table[-1]
            print(
                f"{'tokens' if tokens else 'text':10} {rows:8} {processes:9} {row['seconds']:8.1f} "
                f"{rows / row['seconds']:8.0f} {row['peak_bytes'] / 1e6:6.0f} "
                f"{row['peak_bytes_of_a_child'] / 1e6:9.0f}",
                flush=True,
            )
    report |= {"kilobytes_a_row": size / 1000, "table": table}
    print(f"\nraw figures: {harness.write_report(report, args.output)}")


if __name__ == "__main__":
    main()
