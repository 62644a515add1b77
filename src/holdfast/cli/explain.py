"""`holdfast explain`: objectives in words and symbols, and as curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from holdfast.errors import ConfigError
from holdfast.experiments.yaml_file import apply_override
from holdfast.objectives.explain import Explanation, explain
from holdfast.objectives.registry import list_objectives, objective_class, resolve_objective
from holdfast.objectives.shape import Shape, shape_of
from holdfast.objectives.token import TokenObjective
from holdfast.reports.objective_shapes import Curve, require_format, write_objective_shapes

# The four objectives of the gradient-shape figure of arXiv 2510.00526.
PAPERS_FIGURE = ("nll", "p", "f_alpha:alpha=10", "log_one_minus_p")
POINTS = 1001  # of a curve


def show(names: Sequence[str]) -> None:
    """Print what each objective is, or the list of all.

    Raises:
        ConfigError: no such objective; names the nearest.
    """
    console = Console(highlight=False)
    if not names:
        _print_list(console)
        return
    try:
        told = [explain(name) for name in names]
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for number, found in enumerate(told):
        if number:
            console.print()
        _print_one(console, found)


def plot(names: Sequence[str], output: Path) -> None:
    """Draw f(p) and W_f(p) of token objectives into `output`, and print where each leans and peaks.

    Args:
        names: `nll`, or `f_alpha:alpha=0.3,...` with settings; none: the paper's four.
        output: an .svg or .png file.

    Raises:
        ConfigError: no such objective or setting, an objective on pairs, another kind of file.
    """
    require_format(output)
    names = names or PAPERS_FIGURE
    objectives = {name: _token_objective(name) for name in dict.fromkeys(names)}
    shapes = {name: shape_of(objective) for name, objective in objectives.items()}
    curves = [_curve(name, objective, shapes[name]) for name, objective in objectives.items()]
    try:
        write_objective_shapes(output, curves)
    except OSError as error:
        raise ConfigError(f"'{output}' cannot be written: {error.strerror}") from error
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("objective", overflow="fold")
    for column in ("leaning", "f is", "W_f peaks at p", "W_f there"):
        table.add_column(column, no_wrap=True)
    for name, shape in shapes.items():
        table.add_row(name, shape.leaning, bend_words(shape), f"{shape.peak:.4g}", f"{shape.peak_weight:.4g}")
    console = Console(highlight=False)
    console.width = max(console.width, 100)  # a table that wraps cannot be read
    console.print(table)
    console.print(f"figure: {output}", markup=False, soft_wrap=True)


def bend_words(shape: Shape) -> str:
    """What a shape's leaning rests on."""
    bends = {"prior-leaning": "concave", "prior-averse": "convex", "neither": "neither concave nor convex"}
    bend = "a line" if shape.linear else bends[shape.kept_leaning]
    return bend if shape.kept_leaning == shape.leaning else f"cut; {bend} where kept"


def _token_objective(text: str) -> TokenObjective:
    """`name` or `name:key=value,key=value` as an objective on tokens."""
    name, _, settings = text.partition(":")
    spec: dict[str, object] = {"name": name}
    for setting in settings.split(",") if settings else ():
        if "=" not in setting:
            raise ConfigError(f"'{text}': '{setting}' is not a setting; write f_alpha:alpha=0.3")
        try:
            apply_override(spec, setting.strip())
        except ConfigError as error:
            raise ConfigError(f"'{text}': {error}") from error
    try:
        objective = resolve_objective(spec)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(objective, TokenObjective):
        raise ConfigError(
            f"'{name}' works on pairs and is no function of one probability; --plot draws the token objectives: "
            f"{', '.join(list_objectives('token'))}"
        )
    if objective.needs_percentiles:
        raise ConfigError(
            f"'{text}': its bounds are quantiles of a model's probabilities on some rows; `holdfast probe` measures "
            "those: draw it with the probabilities there (threshold:low=0.2)"
        )
    return objective


def _curve(label: str, objective: TokenObjective, shape: Shape) -> Curve:
    """The objective at even steps of p, with a gap wherever a threshold cuts."""
    p = torch.linspace(0, 1, POINTS, dtype=torch.float64)[1:-1]
    kept = objective.kept(p.log())
    value, weight = objective(p.log()), objective.gradient_weight(p)
    edge = torch.cat([torch.zeros(1, dtype=torch.bool), kept[1:] != kept[:-1]])
    value, weight = (torch.where(edge, math.nan, curve) for curve in (value, weight))
    return Curve(label, p.tolist(), value.tolist(), weight.tolist(), shape.peak, shape.peak_weight)


def _print_list(console: Console) -> None:
    for kind, heading in (("pair", "on preference pairs"), ("token", "on tokens (supervised)")):
        table = Table(title=f"Objectives {heading}", title_justify="left", box=None, padding=(0, 2, 0, 0))
        for column in ("name", "what it does", "reference"):
            table.add_column(column)
        for name in list_objectives(kind):
            table.add_row(
                name, explain(name).title, "needed" if objective_class(name).needs_reference else ""
            )
        console.print(table)
        console.print()
    console.print(
        "holdfast explain NAME tells the rest; holdfast explain --plot NAME NAME draws token objectives."
    )


def _print_one(console: Console, found: Explanation) -> None:
    console.print(f"[bold]{found.name}[/bold]  {found.title}", markup=True)
    console.print(f"\n  {found.formula}\n", markup=False)
    if found.symbols:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("field", "default", "meaning"):
            table.add_column(column)
        for symbol in found.symbols:
            table.add_row(symbol.field, str(symbol.default), symbol.meaning)
        console.print(table)
    console.print(f"\nneeds: {found.needs}", markup=False)
    if found.shape is not None:
        console.print(
            f"shape: {found.shape.leaning} (f is {bend_words(found.shape)}); W_f has its peak, "
            f"{found.shape.peak_weight:.4g}, at p = {found.shape.peak:.4g}",
            markup=False,
        )
    console.print(f"paper: {found.paper}", markup=False)
    for name, values in found.presets.items():
        text = ", ".join(f"{key}={value}" for key, value in values.items()) or "the defaults"
        console.print(f"preset {name}: {text}", markup=False)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
