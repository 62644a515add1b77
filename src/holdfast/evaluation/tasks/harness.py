"""Regression suites by lm-evaluation-harness: what a model could do before its training, it should still be able to.

The harness is an extra, and brings its own tasks and metrics; here it runs in this process on a model that our loader
has checked, and what it measures is set beside a base model question by question.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from holdfast.errors import ConfigError, DataError
from holdfast.evaluation.judged.assets import content_hash
from holdfast.evaluation.results import Results
from holdfast.evaluation.tasks.harness_scores import Metric, differences, metrics_of, score_of
from holdfast.files import replacing
from holdfast.models.loading import load_model, load_tokenizer

SEED = 1234  # the harness's own for few-shot examples


@dataclass(frozen=True)
class Suite:
    """What is asked of each model.

    Attributes:
        tasks: names the harness knows, or has in `include`.
        include: a folder of further task files (YAML); such a file may name Python code, which is run.
        limit: questions a task, the first ones; None for all.
        fewshot: examples before a question; None for each task's own number.
        chat_template: put every question as a user's turn.
        batch_size: questions a forward.
        dtype, device: of the weights; device None is a GPU where there is one.
    """

    tasks: tuple[str, ...]
    include: str | None = None
    limit: int | None = None
    fewshot: int | None = None
    chat_template: bool = False
    batch_size: int = 8
    dtype: str = "auto"
    device: str | None = None

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ConfigError("no task named: --tasks arc_easy,hellaswag (`lm_eval ls tasks` lists them)")
        for name in ("limit", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        if self.fewshot is not None and self.fewshot < 0:
            raise ConfigError(f"fewshot must be 0 or more, not {self.fewshot}")


def run_suite(
    model: str, suite: Suite, folder: str | Path, *, base: str | None = None, seed: int = 0
) -> Results:
    """Measure a model, and a base model where one is named, and write `results.json`.

    What was measured is kept in the folder, one file a model: the same model and suite are not measured again.

    Args:
        model, base: folders or hub names.
        seed: of the intervals.

    Raises:
        ConfigError: the harness is not installed, a task it does not know, or a setting as above.
        ModelError: as `load_model`.
        DataError: a file in the folder that cannot be read, or questions that cannot be fetched.
    """
    _require_harness()
    target = Path(folder)
    measured = _measured(model, suite, target / "model.json")
    before = None if base is None else _measured(base, suite, target / "base.json")
    metrics = _metrics(measured)
    earlier = [] if before is None else _metrics(before)
    changed = differences(metrics, earlier, seed=seed)
    version = metadata.version("lm-eval")
    why_not = []
    if suite.limit is not None:
        why_not.append(f"the first {suite.limit} questions of each task only")
    if suite.fewshot is not None:
        why_not.append(f"{suite.fewshot} examples before every question")
    if suite.chat_template:
        why_not.append("questions are put through the chat template")
    if suite.include is not None:
        why_not.append("task files of your own")
    results = Results(
        name="lm-evaluation-harness" if not why_not else "lm-evaluation-harness tasks, custom",
        official=not why_not,
        why_not_official=why_not,
        model=model,
        judge=None,
        protocol=f"lm-eval {version}, its own prompts, metrics and few-shot examples; intervals draw questions",
        settings={**asdict(suite), "base": base, "seed": seed, "versions": measured["versions"]},
        hashes={"suite": content_hash([asdict(suite), measured["versions"], version])},
        scores=[*changed, *(score_of(metric, seed=seed) for metric in metrics)],
        per_category=[],
        missing={},
        questions=_questions(metrics, earlier),
    )
    results.write(target)
    return results


def _require_harness() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("lm-evaluation-harness is not installed: pip install 'holdfast[lm-eval]'")


def _measured(model: str, suite: Suite, path: Path) -> dict[str, Any]:
    """What the harness measures of a model, from `path` where the same was measured before."""
    files = [*files_of(model), *files_of(suite.include, "**/*")]
    asked = {"model": model, "files": files, **_plain(suite)}
    if path.exists():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
            if there["asked"] == asked:
                return dict(there)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: cannot be read ({error!r}); remove it, and it is measured anew"
            ) from error
        raise ConfigError(
            f"'{path}' holds another model's figures, or of another suite: choose another output folder"
        )
    output = _evaluate(model, suite)
    found = {
        "asked": asked,
        "versions": output.get("versions", {}),
        "metrics": [asdict(metric) for metric in metrics_of(output)],
    }
    with replacing(path) as beside:
        beside.write_text(json.dumps(found, allow_nan=False, default=str) + "\n", encoding="utf-8")
    return json.loads(json.dumps(found, default=str))


def files_of(folder: str | None, pattern: str = "*") -> list[list[str | int]]:
    """Name, size and time of the files in a folder: a model trained anew under its old name is another one."""
    if folder is None:
        return []
    files = sorted(file for file in Path(folder).expanduser().glob(pattern) if file.is_file())
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _plain(suite: Suite) -> dict[str, Any]:
    """As it comes back out of a file: tuples are lists."""
    return dict(json.loads(json.dumps(asdict(suite))))


def _evaluate(model: str, suite: Suite) -> Mapping[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    manager = _task_manager(suite.include)
    known = set(manager.all_tasks)
    unknown = [name for name in suite.tasks if name not in known]
    if unknown:
        raise ConfigError(f"lm-evaluation-harness has no task '{unknown[0]}' (`lm_eval ls tasks` lists them)")
    weights = load_model(model, dtype=suite.dtype)
    weights.to(suite.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    weights.eval()
    language_model = HFLM(pretrained=weights, tokenizer=load_tokenizer(model), batch_size=suite.batch_size)
    try:
        output = simple_evaluate(
            model=language_model,
            tasks=list(suite.tasks),
            num_fewshot=suite.fewshot,
            limit=suite.limit,
            log_samples=True,
            bootstrap_iters=0,  # the intervals are ours
            apply_chat_template=suite.chat_template,
            fewshot_random_seed=SEED,
            task_manager=manager,
        )
    except (OSError, ValueError) as error:  # tasks named twice, questions that the hub does not give
        raise DataError(f"lm-evaluation-harness cannot run {', '.join(suite.tasks)}: {error}") from error
    return dict(output)


@lru_cache(maxsize=1)
def _task_manager(include: str | None) -> Any:
    """What knows the tasks; it reads thousands of files, so once is enough."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include)


def _metrics(measured: Mapping[str, Any]) -> list[Metric]:
    return [Metric(**metric) for metric in measured["metrics"]]


def _questions(metrics: Sequence[Metric], base: Sequence[Metric]) -> list[dict[str, Any]]:
    """Every question once, with its task's first metric that has values by question, and the base's beside it."""
    before = {metric.label: metric for metric in base}
    found, seen = [], set()
    for metric in metrics:
        if not metric.by_question or metric.task in seen:
            continue
        seen.add(metric.task)
        other = before.get(metric.label)
        for question, value in metric.by_question.items():
            row = {
                "id": f"{metric.task}/{question}",
                "category": metric.task,
                "score": value,
                "metric": metric.name,
            }
            if other is not None:
                row["base"] = other.by_question.get(question)
            found.append(row)
    return found
