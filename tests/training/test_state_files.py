"""State dicts to files and back: exactly, and nothing that would need pickle."""

from __future__ import annotations

import json
import random
import struct
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import Adafactor, get_scheduler

from holdfast.errors import CheckpointError
from holdfast.training.optimizer_state import restore_optimizer
from holdfast.training.state_files import DTYPES, load_state, save_state


def same(one: Any, other: Any) -> bool:
    """Equal in type, order and every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        return torch.equal(bits(one), bits(other))
    if isinstance(one, np.ndarray | np.generic):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return same(list(one), list(other)) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    return bool(one == other)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def noise(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Random bytes: NaNs of every kind are among them."""
    raw = np.random.default_rng(seed).bytes(int(np.prod(shape)) * dtype.itemsize)
    numbers = torch.tensor(list(raw), dtype=torch.uint8)
    return (numbers % 2 if dtype is torch.bool else numbers).view(dtype).reshape(shape)


def through_files(state: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        save_state(state, Path(folder) / "state")
        return load_state(Path(folder) / "state")


# ---- worked by hand


def test_what_stands_in_the_files(tmp_path: Path) -> None:
    moment = torch.tensor([1.0, 2.0])
    state = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": moment}},
        "param_groups": [{"betas": (0.9, 0.999), "fused": None, "best": float("inf"), "params": [0]}],
        "$": "dollar",
    }
    save_state(state, tmp_path / "optimizer.7")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "optimizer.7.json",
        "optimizer.7.safetensors",
    ]
    assert json.loads((tmp_path / "optimizer.7.json").read_text()) == {
        "format": 1,
        "state": {
            "$dict": [
                [
                    "state",
                    {
                        "$dict": [
                            [
                                0,
                                {
                                    "step": {"$tensor": "['state'][0]['step']"},
                                    "exp_avg": {"$tensor": "['state'][0]['exp_avg']"},
                                },
                            ]
                        ]
                    },
                ],
                [
                    "param_groups",
                    [
                        {
                            "betas": {"$tuple": [0.9, 0.999]},
                            "fused": None,
                            "best": {"$float": "7ff0000000000000"},
                            "params": [0],
                        }
                    ],
                ],
                ["$", "dollar"],
            ]
        },
    }
    tensors = load_file(tmp_path / "optimizer.7.safetensors")
    assert tensors.keys() == {"['state'][0]['step']", "['state'][0]['exp_avg']"}
    assert same(tensors["['state'][0]['exp_avg']"], moment)
    assert same(load_state(tmp_path / "optimizer.7"), state)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        1,
        -(2**127),
        1.0,
        -0.0,
        5e-324,
        float("inf"),
        float("-inf"),
        float("nan"),
        struct.unpack("d", struct.pack("Q", 0xFFF8000000000123))[0],  # a NaN with a sign and a payload
        0.1 + 0.2,
        "",
        "naïve\x00\u2028\n",
        "\ud83d\ude00",  # two lone surrogates; JSON alone would make them one character
        [],
        (),
        [(1,), [1]],
        {},
        {1: "a", "1": "b", None: "c", 2.5: "d", (1, "x"): "e", "$tuple": "f"},
        {True: 1},
        {"$tensor": "no reference"},
        {"": {"$": []}},
        OrderedDict([("b", 1), ("a", 2)]),
        Counter([30, 30, 60]),
        np.float32(0.1),
        np.int64(-3),
        np.bool_(True),
        np.array(7, dtype=np.uint16),
        np.zeros((0, 3), dtype=np.float16),
        np.arange(6).reshape(2, 3)[:, ::-1],
        random.Random(5).getstate(),
        np.random.RandomState(5).get_state(),
        np.random.default_rng(5).bit_generator.state,
        torch.Generator().manual_seed(5).get_state(),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_values_come_back(value: Any) -> None:
    state = {"value": value, "list": [value], "tuple": (value, value)}
    assert same(through_files(state), state)


@pytest.mark.parametrize("dtype", sorted(DTYPES, key=str), ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (5,), (2, 3)], ids=str)
def test_tensors_of_every_kind_come_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = noise(dtype, shape)
    back = through_files({"tensor": tensor, "again": [tensor.clone()]})
    assert same(back, {"tensor": tensor, "again": [tensor]})


def test_memory_shared_by_tensors() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    state = {
        "whole": whole,
        "itself": whole,
        "row": whole[1],
        "transposed": whole.t(),
        "expanded": whole[:1].expand(3, 4),
        "same numbers": whole.view(4, 3),
    }
    back = through_files(state)
    assert same(back, state)
    assert back["whole"] is back["itself"]
    back["whole"].zero_()
    assert same(back["row"], state["row"])


def test_arrays_are_not_taken_for_each_other() -> None:
    """Each becomes a tensor that lives for a moment only; the next may stand at the same address."""
    state = {"arrays": [np.full(3, n) for n in range(50)]}
    assert same(through_files(state), state)


def test_conjugated_views_are_written_as_they_read() -> None:
    view = torch.tensor([1 + 2j]).conj()
    assert through_files({"view": view})["view"].tolist() == [1 - 2j]


def test_loaded_tensors_do_not_hang_on_the_file(tmp_path: Path) -> None:
    save_state({"tensor": torch.zeros(2000)}, tmp_path / "state")
    loaded = load_state(tmp_path / "state")["tensor"]
    with (tmp_path / "state.safetensors").open("r+b") as file:
        file.seek(-4000, 2)
        file.write(b"\x01" * 4000)
    assert same(loaded, torch.zeros(2000))


# ---- properties

KEYS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.tuples(inner, inner),
    max_leaves=3,
)
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=6)
ANY_FLOAT = st.integers(0, 2**64 - 1).map(lambda n: struct.unpack("d", struct.pack("Q", n))[0])
TENSORS = st.builds(
    lambda dtype, shape, seed: noise(dtype, shape, seed),
    st.sampled_from(sorted(DTYPES, key=str)),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.integers(0, 9),
)
LEAVES = st.none() | st.booleans() | st.integers() | ANY_FLOAT | ANY_TEXT | TENSORS
STATES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.dictionaries(st.sampled_from(["$", "$tuple", "$tensor", "a"]), inner, max_size=2)
        | st.dictionaries(ANY_TEXT, inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(ANY_TEXT, STATES, max_size=4))
def test_any_state_comes_back(state: dict[str, Any]) -> None:
    assert same(through_files(state), state)


# ---- optimizers and schedulers go on as if nothing had happened


def parameters(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in [(4, 3), (5,)]]


def step(optimizer: torch.optim.Optimizer, scheduler: Any, weights: list[torch.nn.Parameter], n: int) -> None:
    generator = torch.Generator().manual_seed(100 + n)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)
    optimizer.step()
    takes_metric = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
    scheduler.step(*([1.0 + n % 2] if takes_metric else []))


def go_on_equal(make_optimizer: Callable[..., Any], make_scheduler: Callable[..., Any], dtype: Any) -> None:
    straight = parameters(dtype)
    optimizer = make_optimizer(straight)
    scheduler = make_scheduler(optimizer)
    saved: dict[str, Any] = {}
    for n in range(8):
        if n == 4:
            saved = through_files({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()})
            assert same(saved, {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()})
            weights = [weight.detach().clone() for weight in straight]
        step(optimizer, scheduler, straight, n)

    resumed = [torch.nn.Parameter(weight) for weight in weights]
    fresh = make_optimizer(resumed)
    fresh_scheduler = make_scheduler(fresh)
    restore_optimizer(fresh, saved["optimizer"])
    fresh_scheduler.load_state_dict(saved["scheduler"])
    for n in range(4, 8):
        step(fresh, fresh_scheduler, resumed, n)
    assert same([w.detach() for w in resumed], [w.detach() for w in straight])
    assert same(fresh.state_dict(), optimizer.state_dict())
    assert same(fresh_scheduler.state_dict(), scheduler.state_dict())


def linear(optimizer: torch.optim.Optimizer) -> Any:
    return get_scheduler("linear", optimizer, num_warmup_steps=3, num_training_steps=10)


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "AdamW": partial(torch.optim.AdamW, lr=0.1),
    "AdamW foreach": partial(torch.optim.AdamW, lr=0.1, foreach=True),
    "AdamW fused": partial(torch.optim.AdamW, lr=0.1, fused=True),
    "AdamW amsgrad": partial(torch.optim.AdamW, lr=0.1, amsgrad=True, weight_decay=0.1),
    "AdamW of a tensor's rate": lambda weights: torch.optim.AdamW(
        weights, lr=torch.tensor(0.1), foreach=False
    ),
    "AdamW of two groups": lambda weights: torch.optim.AdamW(
        [{"params": weights[:1], "weight_decay": 0.1}, {"params": weights[1:], "weight_decay": 0.0}], lr=0.1
    ),
    "SGD": partial(torch.optim.SGD, lr=0.1),
    "SGD momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "Adafactor": Adafactor,
    "Adafactor fixed": partial(Adafactor, lr=0.1, scale_parameter=False, relative_step=False, beta1=0.9),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers_go_on_bit_equal(make_optimizer: Callable[..., Any], dtype: torch.dtype) -> None:
    go_on_equal(make_optimizer, constant if make_optimizer is Adafactor else linear, dtype)


def constant(optimizer: torch.optim.Optimizer) -> Any:
    """For an optimizer whose rate is its own: it has none that a schedule could scale."""
    optimizer.param_groups[0]["lr"] = 1.0
    return get_scheduler("constant", optimizer)


SCHEDULERS: dict[str, Callable[..., Any]] = {
    **{
        name: partial(get_scheduler, name, num_warmup_steps=3, num_training_steps=10)
        for name in ("linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt")
    },
    "constant_with_warmup": partial(get_scheduler, "constant_with_warmup", num_warmup_steps=6),
    "warmup_stable_decay": partial(
        get_scheduler,
        "warmup_stable_decay",
        num_warmup_steps=3,
        num_training_steps=8,
        scheduler_specific_kwargs={"num_decay_steps": 3},
    ),
    "reduce_lr_on_plateau": partial(
        get_scheduler, "reduce_lr_on_plateau", scheduler_specific_kwargs={"patience": 0}
    ),
    "MultiStepLR": partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[2, 6, 6]),
    "OneCycleLR": partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.2, total_steps=10),
}


@pytest.mark.parametrize("make_scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_schedulers_go_on_bit_equal(make_scheduler: Callable[..., Any]) -> None:
    go_on_equal(partial(torch.optim.AdamW, lr=0.1), make_scheduler, torch.float32)


def test_a_gradient_scaler_comes_back() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler.scale(weight.sum() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    fresh = torch.amp.GradScaler("cpu", init_scale=8.0)
    fresh.load_state_dict(through_files(scaler.state_dict()))
    assert fresh.get_scale() == scaler.get_scale() == 32.0
    assert same(fresh.state_dict(), scaler.state_dict())


def test_random_numbers_go_on() -> None:
    def draw() -> list[Any]:
        return [random.gauss(0, 1), np.random.rand(3), torch.rand(3)]  # noqa: NPY002  the state that is global

    random.gauss(0, 1)  # leaves its second number in the state
    state = through_files(
        {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}  # noqa: NPY002
    )
    first = draw()
    draw()
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    assert same(draw(), first)


# ---- what cannot be held is an error that says where


class Own(dict[str, int]):
    """A dict of its own kind."""


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (object(), "a builtins.object"),
        (print, "a builtins.builtin_function_or_method"),
        (b"bytes", "a builtins.bytes"),
        ({1, 2}, "a builtins.set"),
        (torch.Size([2]), "a torch.Size"),
        (torch.float32, "a torch.dtype"),
        (Own(), "Own"),
        (torch.nn.Parameter(torch.zeros(2)), "Parameter"),
        (torch.zeros(2).to_sparse(), "a sparse_coo tensor of torch.float32"),
        (torch.zeros(2, device="meta"), "a meta tensor of torch.float32"),
        (torch.zeros(2, dtype=torch.complex128), "tensor of torch.complex128"),
        (np.array(["text"]), "a NumPy array of <U4"),
        (np.array([None]), "a NumPy array of object"),
        (np.zeros(2, ">f4"), "a NumPy array of >f4"),
        (np.datetime64(1, "s"), "a NumPy array of datetime64[s]"),
        ({b"key": 1}, "the key b'key' (bytes)"),
        ({float("nan"): 1}, "the key nan (float)"),
        (2**9000, "an integer of more than 8192 bits"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_needs_pickle_is_named_with_its_path(tmp_path: Path, value: Any, what: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        save_state({"groups": [{0: value}]}, tmp_path / "state")
    assert what in str(caught.value)
    assert "at ['groups'][0][0]" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_state_within_itself_is_refused(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(CheckpointError, match=r"more than 100 deep at \['loop'\]\[0\]\[0\]"):
        save_state({"loop": loop}, tmp_path / "state")


# ---- files that are not as they were written


@pytest.fixture
def stem(tmp_path: Path) -> Path:
    save_state({"a": torch.ones(2), "b": (1, float("nan"))}, tmp_path / "state")
    return tmp_path / "state"


@pytest.mark.parametrize("ending", [".json", ".safetensors"])
def test_a_missing_file_is_named(stem: Path, ending: str) -> None:
    path = stem.with_name(stem.name + ending)
    path.unlink()
    with pytest.raises(CheckpointError, match=str(path)):
        load_state(stem)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "é",
        '{"format": 1}',
        '{"format": 2, "state": {}}',
        '{"format": 1, "state": []}',
        "[" * 10**5,
    ],
    ids=lambda text: text[:60],
)
def test_a_file_that_is_no_state_is_an_error(stem: Path, text: str) -> None:
    stem.with_name("state.json").write_text(text)
    with pytest.raises(CheckpointError, match=f"'{stem}.json"):
        load_state(stem)


@pytest.mark.parametrize(
    "value",
    [
        "NaN",
        "Infinity",
        '{"$tensor": "[\'b\']"}',
        '{"$tensor": {}}',
        '{"$tuple": 3}',
        '{"$tuple": [], "b": 1}',
        '{"a": 1, "$tuple": []}',
        '{"$float": "00"}',
        '{"$float": "zz"}',
        '{"$text": 1}',
        '{"$dict": [[[], 1]]}',
        '{"$dict": [1]}',
        '{"$dict": {"a": 1}}',
        '{"$unknown": 1}',
        '{"b": ' * 900 + "1" + "}" * 900,
    ],
    ids=lambda value: value[:40],
)
def test_a_value_that_is_not_as_it_is_written_is_an_error(stem: Path, value: str) -> None:
    path = stem.with_name("state.json")

    def put(text: str) -> None:
        path.write_text('{"format": 1, "state": {"a": {"$tensor": "[\'a\']"}, "b": ' + text + "}}")

    put("[1]")
    assert load_state(stem)["b"] == [1]
    put(value)
    with pytest.raises(CheckpointError, match=f"'{path}'"):
        load_state(stem)


def test_a_tensor_that_the_state_does_not_know_is_an_error(stem: Path) -> None:
    stem.with_name("state.json").write_text('{"format": 1, "state": {}}')
    with pytest.raises(CheckpointError, match=r"holds a tensor \['a'\] that"):
        load_state(stem)


def test_tensors_of_another_state_are_refused(stem: Path) -> None:
    save_file({"['a']": torch.ones(2), "['c']": torch.ones(2)}, stem.with_name("state.safetensors"))
    with pytest.raises(CheckpointError, match=r"holds a tensor \['c'\]"):
        load_state(stem)


def test_a_pickle_in_its_place_is_refused(stem: Path) -> None:
    torch.save({"['a']": torch.ones(2)}, stem.with_name("state.safetensors"))
    with pytest.raises(CheckpointError, match=r"state\.safetensors' cannot be read"):
        load_state(stem)
