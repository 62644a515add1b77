"""`holdfast sweep`: every objective in every setting with every seed; each finished cell is on disk at once.

A sweep's folder:

    models/         the start of each seed, and of each seed and setting that has a taste
    cells/          one JSON file a finished cell, named by what it depends on; such a cell is never run again
    results.jsonl   the cells of this configuration, in the grid's order
    table.md, figure.svg
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from holdfast.data.processes import require_processes
from holdfast.demo.continuum_cell import give_a_taste, make_base, run_cell
from holdfast.demo.continuum_config import ContinuumConfig, Spec
from holdfast.files import replacing
from holdfast.objectives.registry import objective_spec, resolve_objective
from holdfast.reports.continuum import write_continuum

Say = Callable[[str], None]
Job = Callable[[], None]


@dataclass(frozen=True)
class Cell:
    """One place in the grid, and the file that holds what came of it."""

    setting: str
    objective: str
    spec: str | Spec | None
    seed: int
    start: Path
    path: Path


def run_sweep(
    config: ContinuumConfig, *, jobs: int = 1, say: Say = print, begin: Callable[[], None] | None = None
) -> Path:
    """Run the cells that are not on disk yet, and write table and figure.

    Args:
        jobs: processes side by side, of one thread each; 1: this process.
        say: receives each line meant for people.
        begin: called once in each process that is started; a function that can be pickled.

    Returns:
        The sweep's folder. Stop it at any time: what is finished stays, and a second call goes on from there.
    """
    require_processes("--jobs", jobs, least=1)
    folder = Path(config.output_dir).expanduser()
    cells = list(grid(config, folder))
    say(f"{len(cells)} cells, {sum(cell.path.exists() for cell in cells)} of them done already, in {folder}")
    todo = [cell for cell in cells if not cell.path.exists()]
    run_all = partial(_run_all, jobs=jobs, say=say, begin=begin)
    run_all(_starts(config, folder, todo), "starting models")
    tasted = [cell for cell in todo if not cell.start.exists()]
    run_all(_tastes(config, folder, tasted), "models with a taste")
    run_all({_name(cell): partial(_run_and_keep, config, cell) for cell in todo}, "cells")
    results = folder / "results.jsonl"
    with replacing(results) as beside:
        beside.write_text("".join(cell.path.read_text(encoding="utf-8") for cell in cells), encoding="utf-8")
    write_continuum(results, config.paper, folder)
    say(f"table: {folder / 'table.md'}, figure: {folder / 'figure.svg'}")
    return folder


def grid(config: ContinuumConfig, folder: Path) -> Iterator[Cell]:
    """All cells, setting by setting, objective by objective, seed by seed."""
    for setting, section in config.settings.items():
        for objective, spec in config.objectives.items():
            for seed in config.seeds:
                start = _base_folder(config, folder, seed)
                if section.taste:
                    recipe = [section.setting().__dict__, config.training.model_dump(), start.name]
                    start = folder / "models" / f"tasted-{seed}-{_digest(recipe)}"
                depends = [
                    section.model_dump(),
                    # with its defaults: another version may have others
                    None if spec is None else dict(objective_spec(resolve_objective(spec))),
                    config.training.model_dump(),
                    config.judging.model_dump(),
                    start.name,
                ]
                name = f"{_slug(setting)}--{_slug(objective)}--{seed}--{_digest(depends)}.json"
                yield Cell(setting, objective, spec, seed, start, folder / "cells" / name)


def _base_folder(config: ContinuumConfig, folder: Path, seed: int) -> Path:
    return folder / "models" / f"base-{seed}-{_digest(config.base.model_dump())}"


def _starts(config: ContinuumConfig, folder: Path, todo: Iterable[Cell]) -> dict[str, Job]:
    """Bases that some cell needs and that are not there."""
    missing = {cell.seed for cell in todo if not _base_folder(config, folder, cell.seed).exists()}
    return {
        f"seed {seed}": partial(make_base, config.base, seed, _base_folder(config, folder, seed))
        for seed in sorted(missing)
    }


def _tastes(config: ContinuumConfig, folder: Path, todo: Iterable[Cell]) -> dict[str, Job]:
    return {
        f"{cell.setting}, seed {cell.seed}": partial(
            give_a_taste,
            _base_folder(config, folder, cell.seed),
            config.settings[cell.setting].setting(),
            config.training,
            cell.seed,
            cell.start,
        )
        for cell in todo
    }


def _run_and_keep(config: ContinuumConfig, cell: Cell) -> None:
    """Run a cell and write its file, whole or not at all."""
    found = run_cell(
        cell.start,
        config.settings[cell.setting].setting(),
        cell.spec,
        config.training,
        config.judging,
        cell.seed,
    )
    line: dict[str, Any] = {"setting": cell.setting, "objective": cell.objective, "seed": cell.seed}
    line |= found | {"torch": torch.__version__}
    with replacing(cell.path) as beside:
        beside.write_text(json.dumps(line) + "\n", encoding="utf-8")


def _run_all(
    todo: dict[str, Job], what: str, *, jobs: int, say: Say, begin: Callable[[], None] | None
) -> None:
    """Do every job, in this process or in several."""
    if not todo:
        return
    say(f"{len(todo)} {what} to make")
    if jobs == 1:
        for done, (name, job) in enumerate(todo.items(), start=1):
            job()
            say(f"[{done}/{len(todo)}] {name}")
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(jobs, len(todo)), mp_context=context, initializer=_be_one_of_many, initargs=(begin,)
    ) as pool:
        names = {pool.submit(job): name for name, job in todo.items()}
        try:
            for done, future in enumerate(as_completed(names), start=1):
                future.result()
                say(f"[{done}/{len(todo)}] {names[future]}")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _be_one_of_many(begin: Callable[[], None] | None) -> None:
    """One thread a process: tiny models gain nothing from more."""
    torch.set_num_threads(1)
    if begin is not None:
        begin()


def _name(cell: Cell) -> str:
    return f"{cell.setting}, {cell.objective}, seed {cell.seed}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _digest(depends: Any) -> str:
    return hashlib.blake2b(json.dumps(depends, sort_keys=True).encode(), digest_size=6).hexdigest()
