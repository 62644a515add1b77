"""What the benchmarks share: the machine's description, measuring processes, memory, matrix rate, tables, JSON.

Every measurement is a process of its own, started by `in_own_process`: the script is called again with `--case` and
prints its figures as the last line. Nothing here imports torch until a measuring process asks for it.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PACKAGES = (
    "holdfast",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "trl",
    "liger-kernel",
    "triton",
)
# Measuring processes reach no network, and no two of them share what one of them computed.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


# ---- the machine


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory, load and system, as they are now."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "memory_bytes": pages,
        "load": os.getloadavg(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "threads_asked": os.environ.get("OMP_NUM_THREADS"),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str | None]:
    """Installed version of each package; None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def commit() -> str | None:
    """The commit this checkout is at, with `-dirty` where files differ; None outside a checkout."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


# ---- measuring processes


def in_own_process(
    script: str | Path, case: dict[str, Any], environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """The figures of one case, measured by `script --case ...`; `{"failed": why}` where the process fails.

    A form that runs out of memory, or cannot run on this device, is a result and not an accident of the benchmark.
    """
    command = [sys.executable, str(script), "--case", json.dumps(case)]
    surroundings = os.environ | ENVIRONMENT | (environment or {})
    if case.get("device") == "cuda":
        # Where several GPUs are seen, the plain Trainer would spread its batch over them.
        surroundings.setdefault("CUDA_VISIBLE_DEVICES", "0")
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings)
    if done.returncode:
        return {"failed": _reason(done.stderr, done.returncode)}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _reason(stderr: str, returncode: int) -> str:
    """What ended a process: its signal, or the last error it wrote."""
    if returncode < 0:
        return f"ended by signal {-returncode}" + (" (out of memory?)" if returncode == -9 else "")
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception", "Exit"))]
    return (errors or lines or [f"exit status {returncode}"])[-1][:500]


def progress(done: int, total: int, what: str = "") -> None:
    """One line on stderr that says how far the rounds are."""
    print(f"\r{done}/{total} {what:60}", end="\n" if done == total else "", file=sys.stderr, flush=True)


# ---- inside a measuring process


class PeakMemory:
    """Bytes this process holds at `start`, and at most from then on: of the allocator on a GPU, else resident."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.before = 0

    def start(self) -> None:
        """Forget any earlier peak, where the system can (Linux and CUDA)."""
        if self.cuda:
            import torch

            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return
        if Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self.before = resident("VmRSS")

    def read(self) -> dict[str, int]:
        """`before_bytes`, `peak_bytes`, and their difference, `grown_bytes`."""
        if self.cuda:
            import torch

            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated()
        else:
            peak = resident("VmHWM")
        return {"before_bytes": self.before, "peak_bytes": peak, "grown_bytes": peak - self.before}


def resident(kind: str) -> int:
    """Bytes of memory this process holds (`VmRSS`), or has held at most (`VmHWM`).

    Outside Linux both are the most it ever held: growth then counts only what goes beyond the start's own peak.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    lines = status.read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(kind + ":"))


def matmul_rates(dtype: str, device: str, repeats: int = 5) -> list[float]:
    """Operations a second of a large square `torch.mm`, `repeats` times after one to warm up."""
    import torch

    size = 8192 if device.startswith("cuda") else 1536
    left, right = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    rates = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        torch.mm(left, right)
        synchronize(device)
        rates.append(2 * size**3 / (time.perf_counter() - start))
    return rates[1:]


def synchronize(device: str) -> None:
    """Wait for the device, where there is something to wait for."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def device_description(device: str) -> dict[str, Any]:
    """Threads, and the accelerator's name."""
    import torch

    name = torch.cuda.get_device_name() if device.startswith("cuda") else None
    return {"threads": torch.get_num_threads(), "accelerator": name}


# ---- reports


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def report_header(benchmark: str, args: argparse.Namespace) -> dict[str, Any]:
    """What a reader needs to place the figures: date, machine, versions, commit, arguments."""
    hidden = {"case", "output", "docs", "chart", "report"}
    return {
        "benchmark": benchmark,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "arguments": {
            k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k not in hidden
        },
    }


def write_report(report: dict[str, Any], output: Path | None) -> Path:
    """Write the report as JSON, by default to `results/BENCHMARK-DATE.json`."""
    path = output or HERE / "results" / f"{report['benchmark']}-{report['date']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return path


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table for the terminal: the first column to the left, the others to the right."""
    widths = [max(len(row[n]) for row in [columns, *rows]) for n in range(len(columns))]
    for row in [columns, *rows]:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
        ]
        print("  ".join(cells).rstrip())


def given_options() -> set[str]:
    """The options on the command line, by the names of what they set."""
    return {word[2:].partition("=")[0].replace("-", "_") for word in sys.argv if word.startswith("--")}


def report_options(parser: argparse.ArgumentParser, benchmark: str) -> None:
    """The options every benchmark has for what becomes of its figures."""
    parser.add_argument("--output", type=Path, help=f"default: benchmarks/results/{benchmark}-DATE.json")
    parser.add_argument("--report", type=Path, help="show the figures of this JSON file instead of measuring")
    parser.add_argument(
        "--docs", type=Path, help="write the tables into the marked part of this Markdown file"
    )
    parser.add_argument("--chart", type=Path, help="draw the figures into this .svg or .png file")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
