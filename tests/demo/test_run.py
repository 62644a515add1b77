"""The demo on a budget of a few steps: every arm runs, is judged, and lands on the page."""

from __future__ import annotations

from pathlib import Path

from holdfast.demo.make_start import make_start
from holdfast.demo.run import OBJECTIVES, Budget, run_demo, start_folder
from holdfast.demo.scoring import sample_completions, score_completions
from holdfast.demo.world import held_out
from holdfast.models.loading import load_model, load_tokenizer

SMALL = Budget(touch_up_steps=2, steps=3, pairs_a_step=4, judged=12)


def test_every_arm_is_trained_and_judged(tmp_path: Path) -> None:
    results = run_demo(tmp_path, seed=1, budget=SMALL, progress=False)
    assert [result.name for result in results] == ["Start (SFT)", *OBJECTIVES]
    start, *arms = results
    assert start.drift == (0.0, 0.0, 0.0)
    for arm in arms:
        assert arm.log[-1]["step"] == SMALL.steps
        assert arm.drift != start.drift, "the arm did not train"
        for low, value, high in (
            (i.low, i.value, i.high) for i in (arm.exact, arm.valid, arm.drift, arm.floor)
        ):
            assert low <= value + 1e-12
            assert value <= high + 1e-12
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert all(name in page for name in OBJECTIVES)
    assert "3 steps of 4 pairs" in page


def test_a_seed_gives_the_same_numbers(tmp_path: Path) -> None:
    first, second = (run_demo(tmp_path / name, seed=1, budget=SMALL, progress=False) for name in ("a", "b"))
    for one, other in zip(first, second, strict=True):
        assert (one.exact, one.valid, one.drift, one.floor) == (
            other.exact,
            other.valid,
            other.drift,
            other.floor,
        )


def test_the_shipped_model_knows_the_format_and_most_tasks() -> None:
    """Greedy; what its makers measured was about 0.9 exact."""
    with start_folder() as folder:
        model, tokenizer = load_model(str(folder), dtype="float32"), load_tokenizer(str(folder))
    assert model.num_parameters() < 2_000_000
    tasks = held_out(100, seed=3)
    answers = sample_completions(model, tokenizer, [task.prompt for task in tasks], temperature=0.0)
    scores = score_completions(tasks, answers)
    assert sum(scores.valid) >= 95
    assert sum(scores.exact) >= 70


def test_the_start_can_be_made_again(tmp_path: Path) -> None:
    make_start(tmp_path / "start", steps=2)
    with start_folder() as shipped:
        assert {p.name for p in (tmp_path / "start").iterdir()} == {p.name for p in shipped.iterdir()}
        made, kept = load_model(str(tmp_path / "start")), load_model(str(shipped))
    assert made.config.to_dict() | {"_name_or_path": ""} == kept.config.to_dict() | {"_name_or_path": ""}
