"""What docs/clusters.md says to type, typed: the launchers' commands with two processes on CPUs."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.conftest import REPOSITORY
from tests.faults.pair import free_port
from tests.training.conftest import rows

TEXT = (REPOSITORY / "docs" / "clusters.md").read_text(encoding="utf-8")
BINARIES = Path(sys.executable).parent
SMALL = [
    "model.from_scratch.vocab_size=320",
    "model.from_scratch.hidden_size=32",
    "model.from_scratch.layers=2",
    "data.max_length=64",
    "data.max_prompt_length=32",
    "data.eval_fraction=0.25",
    *(f"{stage}.per_device_train_batch_size=2" for stage in ("sft", "align")),
    *(f"{stage}.logging_steps=1" for stage in ("sft", "align")),
]


def blocks(kind: str) -> list[str]:
    """The fenced blocks of a kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def command(*beginning: str) -> list[str]:
    """The words of the documented command that begins so."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    found = [words for line in lines if (words := shlex.split(line))[: len(beginning)] == list(beginning)]
    assert len(found) == 1, f"{beginning} stands {len(found)} times in docs/clusters.md"
    return found[0]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(60)), encoding="utf-8")
    return path


def environment(**more: str) -> dict[str, str]:
    """With the commands of this Python in the path."""
    return os.environ | {"PATH": f"{BINARIES}:{os.environ['PATH']}"} | more


def start(words: list[str], log: Path, variables: Mapping[str, str]) -> subprocess.Popen[str]:
    with log.open("a", encoding="utf-8") as output:
        return subprocess.Popen(
            words,
            cwd=REPOSITORY,
            env=dict(variables),
            text=True,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(process: subprocess.Popen[str], seconds: float = 240) -> int:
    """Its exit code; one that is not done in time is ended with all its children, and fails the test."""
    try:
        return process.wait(seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_accelerate_on_cpus(source: Path, tmp_path: Path) -> None:
    words = command("accelerate", "launch", "--config_file", "recipes/accelerate/cpu_ddp.yaml")
    words += [f"data.source={source}", f"output_dir={tmp_path / 'run'}", *SMALL]
    words += ["sft.max_steps=2", "align.max_steps=2"]
    log = tmp_path / "log.txt"
    assert finish(start(words, log, environment())) == 0, log.read_text()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["settings"]["sft"]["global_batch_size"] == 4  # two pairs on each of two processes
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [(line["stage"], line["step"]) for line in lines if "loss" in line]
    assert steps == [("sft", 1), ("sft", 2), ("align", 1), ("align", 2)]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final").num_parameters() > 0
    assert log.read_text().count("trained model:") == 1
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.soak
def test_an_error_is_told_once_and_ends_all(tmp_path: Path) -> None:
    """torchrun; a source that is not there is met by the process that reads it."""
    words = command("torchrun", "--standalone")
    words[words.index("--nproc-per-node") + 1] = "2"
    words[words.index("recipes/slime/qwen3-4b.yaml")] = "recipes/tiny.yaml"
    words += [f"data.source={tmp_path / 'none.jsonl'}", f"output_dir={tmp_path / 'run'}"]
    log = tmp_path / "log.txt"
    assert finish(start(words, log, environment())) == 1  # the launcher's own
    text = log.read_text()
    assert text.count("error: ") == 1, text
    assert "none.jsonl" in text
    assert re.search(r"exitcode\s*:\s*2\b", text), "the processes' own code is 2"
    assert not (tmp_path / "run").exists()


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """A folder with what the job script needs of Slurm: two nodes, which are both here, one process each."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    commands = {
        "srun": 'trap \'kill -TERM $first $second\' TERM; "$@" & first=$!; "$@" & second=$!\n'
        "code=0\nfor task in $first $second; do\n"
        "  while kill -0 $task 2> /dev/null; do wait $task || code=$?; done\ndone\nexit $code",
        "scontrol": f'if [ "$1" = show ]; then echo localhost; else echo "$@" >> {tmp_path}/requeued; fi',
    }
    for name, body in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.soak
def test_the_job_script_is_requeued_until_it_is_done(source: Path, slurm: Path, tmp_path: Path) -> None:
    """Two launchers on two nodes; stopped by the scheduler, and begun again."""
    (script,) = blocks("bash")
    port = free_port()
    job = tmp_path / "job.sh"
    job.write_text(script.replace(":29500", f":{port}"), encoding="utf-8")
    run, log, config = tmp_path / "run", tmp_path / "log.txt", tmp_path / "run.yaml"
    config.write_text(
        f"""
model: {{from_scratch: {{family: qwen3, vocab_size: 320, hidden_size: 32, layers: 2}}}}
data: {{source: {source}, eval_fraction: 0.25, max_length: 64}}
adapter: null
align: {{max_steps: 60, per_device_train_batch_size: 2, learning_rate: 1.0e-3, logging_steps: 1, disable_tqdm: true}}
output_dir: {run}
""",
        encoding="utf-8",
    )
    variables = environment(
        SLURM_JOB_NODELIST="localhost",
        SLURM_NNODES="2",
        SLURM_GPUS_ON_NODE="1",
        SLURM_JOB_ID="7",
        RUN=str(config),
    )
    variables["PATH"] = f"{slurm}:{variables['PATH']}"
    first = start(["bash", str(job)], log, variables)
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 3):
        assert first.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert finish(first) != 0
    text = log.read_text()
    assert "interrupted by SIGTERM after step" in text, text
    assert "--resume" in text
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    stopped = int(re.findall(r"after step (\d+) of 60", text)[0])
    assert (run / "align" / f"checkpoint-{stopped}").is_dir()
    assert 0 < stopped < 60

    assert finish(start(["bash", str(job)], log, variables)) == 0, log.read_text()
    assert (tmp_path / "requeued").read_text() == "requeue 7\n", "a job that is done is not begun again"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 61))
    assert "finished" in json.loads((run / "run.json").read_text())
    assert not (run / "run.lock").exists()


def test_every_command_is_accounted_for() -> None:
    """A command that is added to the page is run above, or needs what is not here: GPUs, or several machines."""
    commands = [line for line in "".join(blocks("sh")).replace("\\\n", " ").splitlines() if line.strip()]
    run_here = [command("accelerate", "launch", "--config_file", "recipes/accelerate/cpu_ddp.yaml")]
    run_here.append(command("torchrun", "--standalone"))
    elsewhere = [
        command("accelerate", "launch", "--config_file", f"recipes/accelerate/{name}.yaml")
        for name in ("ddp", "fsdp2")
    ]
    elsewhere.append(command("torchrun", "--nnodes"))
    assert sorted(shlex.split(line) for line in commands) == sorted(run_here + elsewhere)
