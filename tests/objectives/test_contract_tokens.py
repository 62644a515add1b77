"""One table of token objectives, and the contract that each of them keeps.

Every registered token objective stands in `CASES` with f(p) and s(p) = −f'(p) p written out in plain
Python. A registered objective without a case fails the first test.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from holdfast.objectives import TokenObjective, list_objectives, objective_spec, resolve_objective

GRID = [1e-30, 1e-9, 1e-4, 0.01, 0.1, 0.19, 0.21, 0.3, 0.45, 0.5, 0.55, 0.7, 0.9, 0.99, 1 - 1e-6]
INFINITE = math.inf


@dataclass
class Case:
    spec: dict[str, object]
    f: Callable[[float], float]
    s: Callable[[float], float]  # −f'(p) p, so that W = s (1 − p)
    at_zero: float  # the limit of f as p → 0
    differentiable: bool = True  # False: the gradient is by design not that of the value

    @property
    def objective(self) -> TokenObjective:
        built = resolve_objective(self.spec)
        assert isinstance(built, TokenObjective)
        return built


def f_alpha(alpha: float) -> Case:
    return Case(
        {"name": "f_alpha", "alpha": alpha},
        lambda p: -math.expm1(alpha * math.log(p)) / alpha,
        lambda p: p**alpha,
        1 / alpha,
    )


def focal(gamma: float) -> Case:
    return Case(
        {"name": "focal", "gamma": gamma},
        lambda p: -((1 - p) ** gamma) * math.log(p),
        lambda p: (1 - p) ** gamma - gamma * p * (1 - p) ** (gamma - 1) * math.log(p),
        INFINITE,
    )


def huber(delta: float) -> Case:
    return Case(
        {"name": "huber_p", "delta": delta},
        lambda p: (1 - p) ** 2 / 2 if 1 - p <= delta else delta * (1 - p - delta / 2),
        lambda p: p * min(1 - p, delta),
        0.5 if delta >= 1 else delta * (1 - delta / 2),
    )


def band(low: float, high: float, base: Case, **settings: object) -> Case:
    return Case(
        {"name": "threshold", "base": base.spec, "low": low, "high": high, **settings},
        lambda p: base.f(p) if low <= p <= high else 0.0,
        lambda p: base.s(p) if low <= p <= high else 0.0,
        base.at_zero if low == 0 else 0.0,
    )


NLL = Case({"name": "nll"}, lambda p: -math.log(p), lambda p: 1.0, INFINITE)
CASES = {
    "nll": NLL,
    "f_alpha-0": Case({"name": "f_alpha", "alpha": 0}, NLL.f, NLL.s, INFINITE),
    "f_alpha-1e-300": Case({"name": "f_alpha", "alpha": 1e-300}, NLL.f, NLL.s, INFINITE),
    "f_alpha-1e-12": f_alpha(1e-12),
    "f_alpha-0.1": f_alpha(0.1),
    "f_alpha-1": f_alpha(1.0),
    "f_alpha-10": f_alpha(10.0),
    "p": Case({"name": "p"}, lambda p: 1 - p, lambda p: p, 1.0),
    "log_one_minus_p": Case(
        {"name": "log_one_minus_p"}, lambda p: math.log1p(-p), lambda p: p / (1 - p), 0.0
    ),
    "focal": focal(2.0),
    "focal-0.5": focal(0.5),
    "huber_p": huber(0.5),
    "huber_p-0.9": huber(0.9),
    "huber_p-2": huber(2.0),
    "threshold": Case({"name": "threshold"}, NLL.f, NLL.s, INFINITE),
    "threshold-0.2": band(0.2, 1.0, NLL),
    "threshold-bottom": band(0.0, 0.52, f_alpha(1.0), normalize="all"),
    "threshold-nested": band(0.2, 1.0, band(0.0, 0.6, focal(2.0))),
    "adaptive": Case({"name": "adaptive"}, NLL.f, NLL.s, INFINITE),
    "adaptive-between": replace(f_alpha(0.4), spec={"name": "adaptive", "capability": 0.725}),
    "adaptive-strong": replace(f_alpha(1.5), spec={"name": "adaptive", "capability": 0.95, "highest": 1.5}),
    "dft": Case({"name": "dft"}, lambda p: -p * math.log(p), lambda p: p, 0.0, differentiable=False),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def test_every_registered_token_objective_has_a_case() -> None:
    assert {case.spec["name"] for case in CASES.values()} == set(list_objectives("token"))


def grid(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([math.log(p) for p in GRID], dtype=dtype)


def slope(objective: TokenObjective, logps: Tensor) -> Tensor:
    leaf = logps.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(leaf).sum(), leaf)
    return gradient


@every_case
def test_value_and_gradient_agree_with_the_plain_reference(case: Case) -> None:
    expected_value = [case.f(math.exp(x)) for x in grid().tolist()]
    expected_slope = [-case.s(math.exp(x)) for x in grid().tolist()]  # df/dl = f'(p) p = −s
    assert case.objective(grid()).tolist() == pytest.approx(expected_value, rel=1e-10, abs=1e-10)
    assert slope(case.objective, grid()).tolist() == pytest.approx(expected_slope, rel=1e-10, abs=1e-10)


@every_case
def test_gradcheck(case: Case) -> None:
    leaf = grid()[2:-1].requires_grad_()
    if case.differentiable:
        assert torch.autograd.gradcheck(case.objective, (leaf,))
    else:
        with pytest.raises(RuntimeError, match="Jacobian mismatch"):
            torch.autograd.gradcheck(case.objective, (leaf,))


@every_case
@pytest.mark.parametrize("p", GRID[2:])
def test_gradient_weight_is_the_pull_on_the_target_logit(case: Case, p: float) -> None:
    """Lemma 3.1 through a real softmax: −∂f/∂z_y = W_f(p), and ∂f/∂z_i = s(p) p_i elsewhere."""
    others = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64) * (1 - p)
    logits = torch.cat([torch.tensor([p], dtype=torch.float64), others]).log().requires_grad_()

    def f(z: Tensor) -> Tensor:
        return case.objective(torch.log_softmax(z, -1)[0])

    (gradient,) = torch.autograd.grad(f(logits), logits)
    weight = case.objective.gradient_weight(torch.tensor(p, dtype=torch.float64)).item()
    assert weight == pytest.approx(case.s(p) * (1 - p), rel=1e-9, abs=1e-12)
    assert -gradient[0].item() == pytest.approx(weight, rel=1e-8, abs=1e-10)
    assert gradient[1:].tolist() == pytest.approx(
        [case.s(p) * q for q in others.tolist()], rel=1e-7, abs=1e-10
    )
    if case.differentiable and p < 0.999:  # closer to 1, differences drown in rounding
        step = torch.tensor([1e-6, 0, 0, 0], dtype=torch.float64)
        difference = ((f(logits + step) - f(logits - step)) / 2e-6).item()
        assert -difference == pytest.approx(weight, rel=1e-5, abs=1e-8)


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_certain_and_hopeless_tokens_stay_finite(case: Case, dtype: torch.dtype) -> None:
    logps = torch.tensor([0.0, -1e-12, -1e-7, -1e4], dtype=dtype)
    assert torch.isfinite(case.objective(logps)).all()
    assert torch.isfinite(slope(case.objective, logps)).all()
    weights = case.objective.gradient_weight(torch.tensor([0.0, 1.0], dtype=dtype))
    assert torch.isfinite(weights).all()


@every_case
def test_a_token_the_model_has_ruled_out_has_the_limit_as_its_loss(case: Case) -> None:
    ruled_out = torch.tensor([-math.inf], dtype=torch.float64)
    assert case.objective(ruled_out).item() == pytest.approx(case.at_zero, abs=1e-12)
    if math.isfinite(case.at_zero):
        assert torch.isfinite(slope(case.objective, ruled_out)).all()


@every_case
def test_a_broken_forward_stays_visible(case: Case) -> None:
    broken = torch.tensor([math.nan, -0.5])
    assert case.objective(broken).isnan().tolist() == [True, False]
    assert case.objective.kept(broken)[0]


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_in_float32(case: Case, dtype: torch.dtype) -> None:
    half = grid()[2:].to(dtype)
    assert case.objective(half).dtype == torch.float32
    assert case.objective(half).equal(case.objective(half.float()))
    assert case.objective.kept(half).equal(case.objective.kept(half.float()))
    assert case.objective.gradient_weight(half.exp()).dtype == torch.float32
    assert slope(case.objective, half).dtype == dtype


@every_case
def test_each_token_stands_alone(case: Case) -> None:
    cube = grid()[:12].reshape(2, 2, 3)
    value = case.objective(cube)
    assert value.shape == cube.shape
    assert value.flatten().tolist() == [case.objective(x).item() for x in cube.flatten()]
    assert case.objective.kept(cube).shape == cube.shape
    assert case.objective.kept(cube).dtype == torch.bool


@every_case
def test_tokens_that_do_not_count_have_neither_loss_nor_gradient(case: Case) -> None:
    dropped = ~case.objective.kept(grid())
    assert not case.objective(grid())[dropped].any()
    assert not slope(case.objective, grid())[dropped].any()
    assert not case.objective.gradient_weight(grid().exp())[dropped].any()
    assert case.objective.normalization in ("kept", "all")
    if dropped.any():
        assert case.spec["name"] == "threshold"


@pytest.mark.parametrize(
    "case",
    [case for case in CASES.values() if case.differentiable],  # a stopped gradient's value means nothing
    ids=[name for name, case in CASES.items() if case.differentiable],
)
def test_less_likely_tokens_never_cost_less_among_those_kept(case: Case) -> None:
    logps = grid()
    kept = case.objective(logps)[case.objective.kept(logps)]
    assert (kept.diff() <= 1e-15).all()


@every_case
def test_nothing_is_read_back_from_the_device(case: Case) -> None:
    logps = torch.empty(3, 4, device="meta", requires_grad=True)
    case.objective(logps).sum().backward()
    assert case.objective.kept(logps).shape == case.objective.gradient_weight(logps.exp()).shape == (3, 4)


@every_case
def test_hashable_and_round_trips_through_json(case: Case) -> None:
    built = case.objective
    again = resolve_objective(json.loads(json.dumps(objective_spec(built))))
    assert again == built
    assert hash(again) == hash(built)


@every_case
def test_integers_are_refused(case: Case) -> None:
    with pytest.raises(ValueError, match="floating point"):
        case.objective(torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("case", "bends"),
    [
        ("nll", "up"),
        ("f_alpha-0.1", "up"),
        ("f_alpha-1", "up"),
        ("f_alpha-1", "down"),  # a line is both, and its weight is greatest at ½
        ("f_alpha-10", "down"),
        ("p", "up"),
        ("p", "down"),
        ("log_one_minus_p", "down"),
        ("focal", "up"),
        ("huber_p", "up"),
        ("huber_p-0.9", "up"),
        ("huber_p-2", "up"),
    ],
)
def test_proposition_3_2(case: str, bends: str) -> None:
    """Convex f (bending up): W_f is greatest in [0, ½]; concave f: in [½, 1]."""
    objective = CASES[case].objective
    p = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    curvature = objective(p.log()).diff().diff()
    peak = p[objective.gradient_weight(p).argmax()].item()
    if bends == "up":
        assert (curvature >= -1e-12).all()
        assert peak <= 0.5 + 1e-9
    else:
        assert (curvature <= 1e-12).all()
        assert peak >= 0.5 - 1e-9
