"""Time and peak memory of `linear_logprob` against plain torch as the vocabulary grows.

    python benchmarks/linear_logprob.py
    python benchmarks/linear_logprob.py --tokens 2048 --hidden 1024 --vocab 32768 151936 --rounds 5

One forward and backward of the sum of the log-probs, by a trained head (gradients of hidden states and weight) and
by a frozen one (hidden states alone). Every measurement is a process of its own, after one step to warm up; the
forms take turns, round by round, so that a machine's drift falls on both. Memory is the growth of the process's
peak (on a GPU, of the allocator's) over its inputs. Read the ratios: absolute figures belong to the machine.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FORMS = ["plain", "chunked"]


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: seconds and peak bytes of one forward and backward."""
    import torch

    from holdfast import linear_logprob

    device = torch.device(case["device"])
    if case["threads"]:
        torch.set_num_threads(case["threads"])
    torch.manual_seed(case["seed"])
    tokens, hidden_size, vocab = case["tokens"], case["hidden"], case["vocab"]
    options = {"dtype": getattr(torch, case["dtype"]), "device": device}
    hidden = torch.randn(tokens, hidden_size, requires_grad=True, **options)
    weight = torch.randn(vocab, hidden_size, **options).mul_(hidden_size**-0.5)
    weight.requires_grad_(case["head"] == "trained")
    targets = torch.randint(vocab, (tokens,), device=device)

    def plain() -> torch.Tensor:
        logits = torch.nn.functional.linear(hidden, weight)
        return logits.float().log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1)

    def chunked() -> torch.Tensor:
        return linear_logprob(hidden, weight, targets, implementation="chunked")

    def peak() -> int:
        if device.type == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    before, seconds = peak(), 0.0
    for _ in range(2):  # the first is the warm-up
        hidden.grad = weight.grad = None
        start = time.perf_counter()
        {"plain": plain, "chunked": chunked}[case["form"]]().sum().backward()
        after = peak()
        seconds = time.perf_counter() - start
    accelerator = torch.cuda.get_device_name() if device.type == "cuda" else None
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "accelerator": accelerator}
    return {"seconds": seconds, "peak_bytes": after - before, "machine": machine}


def in_own_process(case: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        # Running out of memory is a result of the plain form, not an accident of the benchmark.
        return {"failed": done.stderr.strip()[-500:] or f"ended by signal {-done.returncode}"}
    return json.loads(done.stdout)


def median(raw: list[dict[str, Any]], key: str, **which: Any) -> float | None:
    rows = [r for r in raw if all(r[k] == v for k, v in which.items())]
    return None if any("failed" in r for r in rows) else statistics.median(r[key] for r in rows)


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocab", type=int, nargs="+", default=[8192, 65536, 262144])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--head", nargs="+", choices=["trained", "frozen"], default=["trained", "frozen"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's own choice")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/linear_logprob-DATE.json")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.case:
        print(json.dumps(measure(args.case)))
        return
    common = {k: getattr(args, k) for k in ("tokens", "hidden", "device", "threads", "seed")}
    kinds = list(itertools.product(args.dtype, args.head, args.vocab))
    raw: list[dict[str, Any]] = []
    for turn, (dtype, head, vocab) in itertools.product(range(args.rounds), kinds):
        for form in FORMS if turn % 2 == 0 else FORMS[::-1]:
            case = {"form": form, "dtype": dtype, "head": head, "vocab": vocab}
            raw.append(case | {"round": turn} | in_own_process(case | common))
            print(f"\r{len(raw)}/{args.rounds * len(kinds) * len(FORMS)}", end="", file=sys.stderr)

    print(
        f"\n{args.tokens} tokens, hidden size {args.hidden}, medians of {args.rounds}; ratios are chunked / plain\n"
    )
    print(
        f"{'dtype':9} {'head':8} {'vocab':>7} {'plain s':>9} {'time':>6} {'plain MB':>9} {'ours MB':>8} {'memory':>7}"
    )
    table = []
    for dtype, head, vocab in kinds:
        which = {"dtype": dtype, "head": head, "vocab": vocab}
        row: dict[str, Any] = dict(which)
        for key, form in itertools.product(["seconds", "peak_bytes"], FORMS):
            row[f"{form}_{key}"] = median(raw, key, form=form, **which)
        table.append(row)
        if None in row.values():
            print(f"{dtype:9} {head:8} {vocab:7} failed: see the output file")
            continue
        times, peaks = (
            (row["plain_seconds"], row["chunked_seconds"]),
            (row["plain_peak_bytes"], row["chunked_peak_bytes"]),
        )
        print(
            f"{dtype:9} {head:8} {vocab:7} {times[0]:9.3f} {times[1] / times[0]:6.2f} "
            f"{peaks[0] / 1e6:9.0f} {peaks[1] / 1e6:8.0f} {peaks[1] / peaks[0]:7.2f}"
        )

    today = datetime.date.today().isoformat()
    output = args.output or Path(__file__).parent / "results" / f"linear_logprob-{today}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()}
    report = {
        "date": today,
        "machine": machine,
        "arguments": vars(args) | {"output": str(output), "case": None},
    }
    output.write_text(json.dumps(report | {"table": table, "raw": raw}, indent=1) + "\n", encoding="utf-8")
    print(f"\nraw figures: {output}")


if __name__ == "__main__":
    main()
