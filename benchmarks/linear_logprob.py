"""Time and peak memory of `linear_logprob` as the vocabulary grows, against plain torch, TRL's head and Liger's losses.

    python benchmarks/linear_logprob.py
    python benchmarks/linear_logprob.py --quick
    python benchmarks/linear_logprob.py --tokens 2048 --hidden 1024 --vocab 32768 151936 --rounds 5
    python benchmarks/linear_logprob.py --device cuda --tokens 8192 --hidden 2560 --forms plain triton trl liger-ce

One forward and backward of the sum of the log-probs, by a trained head (gradients of hidden states and weight) and
by a frozen one (hidden states alone). Every measurement is a process of its own, after one step to warm up; the
forms take turns, round by round, so that a machine's drift falls on all. Memory is the growth of the process's peak
(on a GPU, of the allocator's) over its inputs. Forms of the sum must agree in its value and in the gradient's norm;
Liger's chunked loss is SimPO, its own. A form that cannot run on this device has a row that says why. Read the
ratios: absolute figures belong to the machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import publish

# What each form is, in the table; those of holdfast's own begin with that name.
FORMS = {
    "plain": "plain logits",
    "chunked": "holdfast, chunked",
    "triton": "holdfast, Triton",
    "objective": "holdfast, sum of losses (as SFT)",
    "trl": "TRL ChunkedLogProb",
    "trl-dpo": "TRL ChunkedLogProb, DPO's outputs",
    "liger-ce": "Liger fused linear CE",
    "liger-simpo": "Liger chunked SimPO (own loss)",
    "liger-simpo-eager": "Liger chunked SimPO, not compiled (own loss)",
}
OWN_LOSS = {"liger-simpo", "liger-simpo-eager"}
# by --forms alone: slow, for GPUs, or gradients in the forward, which no evaluation needs
EXTRA = {"triton", "objective", "trl-dpo", "liger-ce", "liger-simpo"}
QUICK = {"tokens": 64, "hidden": 64, "vocab": [4096], "rounds": 1}
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-3}
ROWS = 8  # of Liger's SimPO: the first half chosen, the second rejected
TRL_VOCABULARY_TILE = 32_768  # as its trainers call it


def build(case: dict[str, Any], hidden: Any, weight: Any, targets: Any) -> Callable[[], Any]:
    """What one step computes: () -> a scalar to call `backward` on."""
    import torch

    form = case["form"]
    if form == "plain":

        def plain() -> torch.Tensor:
            logits = torch.nn.functional.linear(hidden, weight)
            return logits.float().log_softmax(-1).gather(1, targets.unsqueeze(1)).sum()

        return plain
    if form in ("chunked", "triton"):
        from holdfast import linear_logprob

        return lambda: linear_logprob(hidden, weight, targets, implementation=form).sum()
    if form == "objective":
        from holdfast.ops.linear_objective import linear_objective

        return lambda: linear_objective(hidden, weight, targets, lambda logps: logps)[0]
    if form in ("trl", "trl-dpo"):
        from trl.kernels import ChunkedLogProbFunction

        outputs = ("log_probs", "entropy", "mean_logits", "is_top1") if form == "trl-dpo" else ("log_probs",)
        settings = (1.0, TRL_VOCABULARY_TILE, None, 1.0, outputs)
        return lambda: ChunkedLogProbFunction.apply(hidden, weight, None, targets, *settings)[0].sum()
    if form == "liger-ce":
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        entropy = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        return lambda: -entropy(weight, hidden, targets)
    from liger_kernel.chunked_loss import LigerFusedLinearSimPOLoss

    simpo = LigerFusedLinearSimPOLoss(compute_nll_loss=False, compiled=form == "liger-simpo")
    time_steps = case["tokens"] // ROWS
    return lambda: simpo(weight, hidden.view(ROWS, time_steps, -1), targets.view(ROWS, time_steps))[0]


def inputs(case: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Hidden states (tokens, hidden), weight (vocab, hidden) and targets (tokens,), the same for every form."""
    import torch

    torch.manual_seed(case["seed"])
    tokens, hidden_size, vocab = case["tokens"], case["hidden"], case["vocab"]
    options = {"dtype": getattr(torch, case["dtype"]), "device": case["device"]}
    hidden = torch.randn(tokens, hidden_size, requires_grad=True, **options)
    weight = torch.randn(vocab, hidden_size, **options).mul_(hidden_size**-0.5)
    weight.requires_grad_(case["head"] == "trained")
    return hidden, weight, torch.randint(vocab, (tokens,), device=case["device"])


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: seconds and peak bytes of one forward and backward, and what they gave."""
    import torch

    device = case["device"]
    if case["threads"]:
        torch.set_num_threads(case["threads"])
    # What a form imports or compiles when it is first called is no part of what it holds.
    small = case | {"tokens": 2 * ROWS, "hidden": 16, "vocab": 64}
    build(small, *inputs(small))().backward()

    hidden, weight, targets = inputs(case)
    forward = build(case, hidden, weight, targets)
    memory = harness.PeakMemory(device)
    memory.start()
    seconds = []
    for _ in range(2):  # the first is the warm-up
        hidden.grad = weight.grad = None
        start = time.perf_counter()
        value = forward()
        value.backward()
        harness.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": seconds[-1],
        "warmup_seconds": seconds[0],
        "value": value.item(),
        "gradient_norm": hidden.grad.float().norm().item(),
        "device": harness.device_description(device),
        **memory.read(),
    }


def summarize(raw: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a case: medians over rounds, and ratios to plain of the same round."""
    keys = ("dtype", "head", "vocab", "form")
    table = []
    for which in dict.fromkeys(tuple(run[key] for key in keys) for run in raw):
        row: dict[str, Any] = dict(zip(keys, which, strict=True))
        runs = [run for run in raw if tuple(run[key] for key in keys) == which]
        if failed := [run["failed"] for run in runs if "failed" in run]:
            table.append(row | {"failed": failed[0]})
            continue
        plain = {
            run["round"]: run
            for run in raw
            if (*(run[key] for key in keys[:3]), run["form"]) == (*which[:3], "plain") and "failed" not in run
        }
        for key in ("seconds", "grown_bytes"):
            row[key] = harness.spread([run[key] for run in runs])
            ratios = [run[key] / plain[run["round"]][key] for run in runs if run["round"] in plain]
            row[f"{key}_ratio"] = harness.spread(ratios) if ratios else None
        table.append(row | {key: runs[0][key] for key in ("value", "gradient_norm")})
    return table


def disagreements(table: list[dict[str, Any]]) -> list[str]:
    """Forms of the same sum that differ from the case's first form."""
    lines: list[str] = []
    leaders: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in table:
        if "failed" in row or row["form"] in OWN_LOSS:
            continue
        leader = leaders.setdefault((row["dtype"], row["head"], row["vocab"]), row)
        for key in ("value", "gradient_norm"):
            difference = abs(row[key] - leader[key]) / abs(leader[key])
            if not difference <= TOLERANCE[row["dtype"]]:  # a NaN disagrees
                lines.append(f"{row}: {key} differs by {difference:.1e} from {leader['form']}'s")
    return lines


COLUMNS = ["form", "dtype", "head", "vocabulary", "seconds", "× plain", "MB over inputs", "× plain"]


def cells(row: dict[str, Any]) -> list[str]:
    """A table's row, in words."""
    start = [FORMS[row["form"]], row["dtype"], row["head"], f"{row['vocab']:,}"]
    if "failed" in row:
        return [*start, "failed", "–", "–", "–"]
    time_ratio, memory_ratio = (
        "–" if row[f"{key}_ratio"] is None else f"{row[f'{key}_ratio']['median']:.2f}"
        for key in ("seconds", "grown_bytes")
    )
    seconds, grown = row["seconds"]["median"], row["grown_bytes"]["median"]
    return [*start, f"{seconds:.3f}", time_ratio, f"{grown / 1e6:,.0f}", memory_ratio]


def reasons(table: list[dict[str, Any]]) -> list[str]:
    """Why a form failed, once for each reason."""
    found = {(row["form"], row["failed"]) for row in table if "failed" in row}
    return [f"failed: {FORMS[form]}: {why}" for form, why in sorted(found)]


def heading(report: dict[str, Any]) -> str:
    """The sizes that all rows share."""
    given = report["arguments"]
    return (
        f"{given['tokens']} tokens, hidden size {given['hidden']}, {given['device']}, "
        f"medians of {given['rounds']} rounds"
    )


def draw(report: dict[str, Any], path: Path) -> None:
    """Seconds and growth against the vocabulary, for the first dtype and head."""
    given = report["arguments"]
    dtype, head = given["dtype"][0], given["head"][0]
    rows = [
        row for row in report["table"] if (row["dtype"], row["head"]) == (dtype, head) and "failed" not in row
    ]
    panels = []
    for key, title, scale in (("seconds", "seconds", 1.0), ("grown_bytes", "MB over the inputs", 1e6)):
        lines: dict[str, tuple[list[float], list[float]]] = {}
        for row in rows:
            x, y = lines.setdefault(FORMS[row["form"]], ([], []))
            x.append(row["vocab"])
            y.append(row[key]["median"] / scale)
        panels.append({"title": title, "lines": lines})
    publish.line_chart(path, f"{dtype}, {head} head, {heading(report)}", "vocabulary", panels)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--forms", nargs="+", choices=FORMS, default=[name for name in FORMS if name not in EXTRA]
    )
    parser.add_argument("--quick", action="store_true", help="a toy, once: do the forms run and agree?")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocab", type=int, nargs="+", default=[8_192, 32_768, 131_072, 262_144])
    parser.add_argument("--dtype", nargs="+", choices=TOLERANCE, default=["float32", "bfloat16"])
    parser.add_argument("--head", nargs="+", choices=["trained", "frozen"], default=["trained", "frozen"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's own choice")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    harness.report_options(parser, "linear_logprob")
    args = parser.parse_args()
    if args.quick:
        vars(args).update({key: value for key, value in QUICK.items() if key not in harness.given_options()})
    if args.tokens % ROWS:
        parser.error(f"--tokens must be a multiple of {ROWS}: Liger's loss takes them as {ROWS} rows")
    return args


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All cases, in turn."""
    report = harness.report_header("linear_logprob", args)
    common = {k: getattr(args, k) for k in ("tokens", "hidden", "device", "threads", "seed")}
    kinds = itertools.product(range(args.rounds), args.dtype, args.head, args.vocab, args.forms)
    raw: list[dict[str, Any]] = []
    total = args.rounds * len(args.dtype) * len(args.head) * len(args.vocab) * len(args.forms)
    for turn, dtype, head, vocab, form in kinds:
        case = {"form": form, "dtype": dtype, "head": head, "vocab": vocab}
        raw.append(case | {"round": turn} | harness.in_own_process(__file__, case | common))
        harness.progress(len(raw), total, f"{form} {dtype} {head} {vocab}")
    return report | {"table": summarize(raw), "raw": raw}


def main() -> None:
    args = arguments()
    if args.case:
        print(json.dumps(measure(args.case)))
        return
    if args.report:
        report = json.loads(args.report.read_text(encoding="utf-8"))
    else:
        report = run(args)
        print(f"raw figures: {harness.write_report(report, args.output)}\n")
    rows = [cells(row) for row in report["table"]]
    print(f"{heading(report)}\n")
    harness.print_table(COLUMNS, rows)
    print("".join(f"\n{line}" for line in reasons(report["table"])))
    if args.docs:
        parts = [
            publish.machine_line(report),
            f"**{heading(report)}**",
            publish.markdown_table(COLUMNS, rows),
        ]
        parts += reasons(report["table"])
        publish.fill(args.docs, "linear_logprob", "\n\n".join(parts))
    if args.chart:
        draw(report, args.chart)
    if wrong := disagreements(report["table"]):
        raise SystemExit("forms of one sum do not agree:\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
