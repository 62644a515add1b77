"""What the two step benchmarks share: options, rounds of measuring processes, agreement, ratios, tables, charts.

A benchmark is its forms (`Form`), each of them a Trainer that trains the same rows from the same weights. Forms of one
group compute the same loss, and the script fails where they do not.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness
import publish
import workload
from step_report import COLUMNS, Form, cells, disagreements, draw, heading, markdown, table_row

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
QUICK = {
    "model": "toy",
    "shape": ["short"],
    "dtype": ["fp32"],
    "pairs": 2,
    "max_length": 96,
    "steps": 1,
    "rounds": 1,
}


@dataclass(frozen=True)
class StepBenchmark:
    """One benchmark.

    Attributes:
        script: the file that is called for every case.
        forms: by name, in the table's order.
        tokenize: `(rows, tokenizer, model, case)` -> the rows as holdfast's own preparation tokenizes them.
        work: `(trainer, tokens, case)` -> what each step's rows ask for; see `stepping.Work`.
        missing: name -> why, for the forms that what is installed does not have.
        defaults: options that this benchmark has otherwise than `_arguments` says.
    """

    name: str
    script: Path
    description: str
    forms: dict[str, Form]
    tokenize: Callable[..., list[dict[str, list[int]]]]
    work: Callable[..., list[Any]]
    missing: Callable[[], dict[str, str]]
    defaults: Mapping[str, Any] = field(default_factory=dict)


def main(benchmark: StepBenchmark) -> None:
    """Measure (or read a report), print, write, and fail where forms of one group do not agree or ours cannot run."""
    args = _arguments(benchmark)
    if args.case:
        measuring = _prepare if "prepare" in args.case else _measure
        print(json.dumps(measuring(benchmark, args.case)))
        return
    if args.report:
        report = json.loads(args.report.read_text(encoding="utf-8"))
    else:
        report, path = _run(benchmark, args)
        print(f"raw figures: {path}\n")
    for part in report["settings"]:
        print(f"{heading(part)}\n")
        harness.print_table(COLUMNS, [cells(row) for row in part["table"]])
        print("".join(f"\n{note}" for note in part["notes"]) + "\n")
    if args.docs:
        publish.fill(args.docs, benchmark.name, markdown(report))
    if args.chart:
        draw(report, args.chart)
    if wrong := [line for part in report["settings"] for line in part["disagreements"]]:
        raise SystemExit("forms of one group do not compute the same:\n" + "\n".join(wrong))
    rows = [row for part in report["settings"] for row in part["table"]]
    if broken := [row for row in rows if "failed" in row and row["label"].startswith("holdfast")]:
        # A peer that cannot run is a result; a form of ours that cannot is a fault.
        raise SystemExit("\n".join(f"{row['label']} failed: {row['failed']}" for row in broken))


# ---- options


def _arguments(benchmark: StepBenchmark) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=benchmark.description.partition("\n")[0])
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a toy, every form once, two at a time: do they run and agree?",
    )
    parser.add_argument("--forms", nargs="+", choices=benchmark.forms, help="default: all but the extra ones")
    parser.add_argument("--shape", nargs="+", choices=workload.SHAPES, default=list(workload.SHAPES))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument(
        "--pairs", type=int, help="pairs, or demonstrations, a micro-batch; default: the shape's"
    )
    parser.add_argument("--max-length", type=int, help="default: the shape's")
    parser.add_argument("--data", default="auto", help="auto, synthetic, or a JSON file; see workload.py")
    parser.add_argument("--steps", type=int, default=1, help="measured steps a process")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument("--rounds", type=int, default=3, help="of all forms")
    parser.add_argument("--model", choices=workload.MODELS, default="41m")
    parser.add_argument("--family", choices=["qwen3", "llama", "gemma3"], help="instead of the model's own")
    for number in ("hidden", "layers", "vocab"):
        parser.add_argument(f"--{number}", type=int, help="instead of the model's own")
    parser.add_argument("--lora", action="store_true", help="rank 64 on every projection; the rest is frozen")
    parser.add_argument(
        "--attention", default="sdpa", help="attention implementation, as transformers names it"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's own choice")
    parser.add_argument("--seed", type=int, default=0)
    harness.report_options(parser, benchmark.name)
    parser.set_defaults(**benchmark.defaults)
    args = parser.parse_args()
    if args.quick:
        vars(args).update({key: value for key, value in QUICK.items() if key not in harness.given_options()})
    if args.warmup < 1 or args.steps < 1 or args.rounds < 1:
        parser.error("--warmup, --steps and --rounds must be at least 1")
    return args


def _settings(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The cases' common part, one a setting."""
    numbers = {"hidden": args.hidden, "layers": args.layers, "vocab": args.vocab}
    common = {
        key: getattr(args, key)
        for key in ("steps", "warmup", "lora", "attention", "device", "threads", "seed")
    }
    return [
        common
        | {
            "shape": shape,
            "dtype": DTYPES[dtype],
            "pairs": args.pairs or workload.SHAPES[shape].pairs,
            "max_length": args.max_length or workload.SHAPES[shape].max_length,
            "model_name": args.model,
            "model": workload.chosen_shape(args.model, args.family, **numbers),
            "data": args.data,
        }
        for shape, dtype in itertools.product(args.shape, args.dtype)
    ]


# ---- inside a measuring process


def _prepare(benchmark: StepBenchmark, case: dict[str, Any]) -> dict[str, Any]:
    """Rows and tokenizer for a setting's measuring processes, in the folder `case["folder"]`."""
    folder = Path(case["folder"])
    shape = dataclasses.replace(workload.SHAPES[case["shape"]], max_length=case["max_length"])
    source, rows = workload.read_rows(case["data"], shape, case["model"]["vocab"] // 4, case["seed"])
    tokenizer = workload.train_tokenizer(rows, case["model"]["vocab"], folder)
    rows = workload.select(rows, tokenizer, shape, case["pairs"] * (case["steps"] + case["warmup"]))
    small = workload.MODELS["toy"]
    model = workload.build_model(
        case
        | {"model": dataclasses.asdict(small) | {"vocab": len(tokenizer)}, "lora": False, "device": "cpu"}
    )
    tokens = benchmark.tokenize(rows, tokenizer, model, case)
    if len(tokens) != len(rows):
        raise SystemExit(
            f"{len(rows) - len(tokens)} of {len(rows)} rows were refused: take a larger --max-length"
        )
    (folder / "rows.json").write_text(json.dumps({"rows": rows, "tokens": tokens}), encoding="utf-8")
    # A mask counts what it marks.
    lengths = [
        {key: sum(ids) if isinstance(ids[0], bool) else len(ids) for key, ids in row.items()}
        for row in tokens
    ]
    mean = {key: sum(row[key] for row in lengths) / len(lengths) for key in tokens[0]}
    return {"source": source, "rows": len(rows), "mean_tokens": mean, "missing": benchmark.missing()}


def _measure(benchmark: StepBenchmark, case: dict[str, Any]) -> dict[str, Any]:
    """Every raw figure of one form."""
    import torch
    from transformers import PreTrainedTokenizerFast

    import stepping

    if case["threads"]:
        torch.set_num_threads(case["threads"])
    folder = Path(case["folder"])
    data = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    trainer = benchmark.forms[case["form"]].build(case, data["rows"], data["tokens"], tokenizer)
    work = benchmark.work(trainer, data["tokens"], case)
    figures: dict[str, Any] = stepping.measure(trainer, case, work)
    return figures


# ---- rounds


def _run(benchmark: StepBenchmark, args: argparse.Namespace) -> tuple[dict[str, Any], Path]:
    """The report, and where it is: written after each setting, so that what is measured outlives what fails."""
    report = harness.report_header(benchmark.name, args)
    chosen = args.forms or [name for name, form in benchmark.forms.items() if form.default]
    at_once = 2 if args.quick else 1
    report["settings"] = []
    for setting in _settings(args):
        report["settings"].append(_run_setting(benchmark, setting, chosen, args.rounds, at_once))
        path = harness.write_report(report, args.output)
    return report, path


def _run_setting(
    benchmark: StepBenchmark, setting: dict[str, Any], chosen: Sequence[str], rounds: int, at_once: int
) -> dict[str, Any]:
    """A setting's figures; `at_once` processes side by side, which is one where times are to mean something."""
    raw: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
        surroundings = {"HOLDFAST_CACHE": f"{folder}/cache", "HF_DATASETS_CACHE": f"{folder}/datasets"}
        prepared = harness.in_own_process(
            benchmark.script, setting | {"folder": folder, "prepare": True}, surroundings
        )
        if "failed" in prepared:
            raise SystemExit(f"the rows cannot be prepared: {prepared['failed']}")
        missing = {name: why for name, why in prepared.pop("missing").items() if name in chosen}
        names = [name for name in chosen if name not in missing]
        if not names:
            raise SystemExit("none of the forms can run: " + "; ".join(missing.values()))
        turns = list(itertools.product(range(rounds), names))

        def run(turn: int, name: str) -> dict[str, Any]:
            case = setting | {"form": name, "folder": folder}
            return {
                "form": name,
                "round": turn,
                **harness.in_own_process(benchmark.script, case, surroundings),
            }

        with ThreadPoolExecutor(at_once) as pool:
            for figures in pool.map(run, *zip(*turns, strict=True)):
                raw.append(figures)
                harness.progress(
                    len(raw), len(turns), f"{setting['shape']} {setting['dtype']}: {figures['form']}"
                )
    forms = {name: benchmark.forms[name] for name in names}
    table = [table_row(name, form, raw) for name, form in forms.items()]
    notes = [f"left out: {benchmark.forms[name].label}: {why}" for name, why in missing.items()]
    return {
        "setting": setting,
        "data": prepared,
        "table": table,
        "notes": notes + [f"failed: {row['label']}: {row['failed']}" for row in table if "failed" in row],
        "disagreements": disagreements(forms, raw, setting["dtype"]),
        "raw": raw,
    }
