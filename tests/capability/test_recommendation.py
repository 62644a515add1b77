"""What is recommended where, the caveats that the figures call for, and that the YAML loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from holdfast.capability.demonstrations import RowSettings
from holdfast.capability.intervals import Estimate
from holdfast.capability.pilot_report import PilotReport, Scores, compare
from holdfast.capability.recommendation import OBJECTIVES, Recommendation, recommend, settle
from holdfast.capability.regime import Name, Regime
from holdfast.capability.summary import TokenSummary, summarise
from holdfast.experiments.config import load_config
from holdfast.objectives.registry import resolve_objective
from holdfast.objectives.token import TokenObjective
from tests.capability.conftest import by_hand

RUN = RowSettings().run("owner/name", "rows.jsonl")


def summary(p: list[float], rows: int = 60) -> TokenSummary:
    scored = by_hand([p] * rows)
    found = summarise(scored, np.ones(len(scored.logps), bool), seed=0)
    assert found is not None
    return found


def found(name: Name, p: list[float], whole_answer: float = 0.0, rows: int = 60) -> Recommendation:
    own = summary(p, rows)
    return recommend(Regime(name), own, own, Estimate(whole_answer), RUN)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_regime_has_an_objective_and_a_yaml_that_loads(name: Name, tmp_path: Path) -> None:
    recommended = found(name, [0.5])
    file = tmp_path / "run.yaml"
    file.write_text(recommended.yaml, encoding="utf-8")
    config = load_config(file)
    assert config.sft is not None
    assert config.sft["objective"] == recommended.objective
    assert isinstance(resolve_objective(recommended.objective), TokenObjective)
    assert (config.model.name, config.data.source, config.align) == ("owner/name", "rows.jsonl", None)


def test_the_yaml_keeps_the_settings_of_the_rows(tmp_path: Path) -> None:
    settings = RowSettings(
        max_length=2048,
        on_overflow="drop",
        split="train",
        revision="v1",
        train_on="all",
        append_eos=True,
        chat_template="chat.jinja",
    )
    own = summary([0.5])
    recommended = recommend(
        Regime("weak"), own, None, Estimate(None), settings.run("folder: with # marks", "a 'b'/ü.jsonl")
    )
    file = tmp_path / "run.yaml"
    file.write_text(recommended.yaml, encoding="utf-8")
    config = load_config(file)
    assert config.sft is not None
    assert config.model.name == "folder: with # marks"
    assert (config.model.append_eos, config.model.chat_template) == (True, "chat.jinja")
    assert (config.data.source, config.data.max_length) == ("a 'b'/ü.jsonl", 2048)
    assert (config.data.on_overflow, config.data.split, config.data.revision) == ("drop", "train", "v1")
    assert config.sft["train_on"] == "all"


def test_the_ends_are_the_papers() -> None:
    assert found("weak", [0.1]).objective == {"name": "nll"}
    assert found("strong", [0.9]).objective == {"name": "p"}


def said(recommended: Recommendation, words: str) -> bool:
    return any(words in caveat for caveat in recommended.caveats)


def test_caveats_follow_the_figures() -> None:
    noisy = found("strong", [0.9] * 9 + [0.001])
    assert said(noisy, "10.0% of the informative tokens have p < 0.01")
    assert not said(noisy, "short")
    clean = found("strong", [0.9] * 9 + [0.2])
    assert said(clean, "The answers are short (10.0 informative tokens a row)")
    assert not said(found("strong", [0.9] * 40), "short")
    assert said(found("intermediate", [0.9, 0.001], whole_answer=0.4), "Rows fall in two")
    assert not said(found("intermediate", [0.9, 0.001], whole_answer=0.1), "Rows fall in two")
    assert said(found("weak", [0.1]), "Noise favours prior-leaning")
    assert said(found("weak", [0.1], rows=20), "Only 20 rows")
    for name in OBJECTIVES:
        assert said(found(name, [0.5]), "The proxy believes the model's own confidence")


def pilot(nll: float, p: float, rows: int = 40) -> PilotReport:
    """A pilot in which each objective answers a share of the rows, the same ones first."""

    def scores(share: float) -> Scores:
        right = (np.arange(rows) < share * rows).astype(float)
        return Scores(-np.ones(rows), np.ones(rows), right, right)

    arms, winners = compare(
        {"nll": scores(nll), "p": scores(p)}, {"nll": {"name": "nll"}, "p": {"name": "p"}}, {}, seed=0
    )
    return PilotReport(100, 400, rows, 1, 0, {}, arms, winners)


def test_a_pilot_overturns_only_what_it_shows_to_be_worse(tmp_path: Path) -> None:
    own = found("strong", [0.9] * 40)
    assert settle(own, pilot(nll=0.5, p=0.9)).objective == {"name": "p"}
    assert "agrees" in settle(own, pilot(nll=0.5, p=0.9)).reason
    close = settle(own, pilot(nll=0.525, p=0.5))
    assert close.objective == {"name": "p"}
    assert "not shown to be worse: p" in close.reason
    overturned = settle(own, pilot(nll=0.9, p=0.5))
    assert overturned.objective == {"name": "nll"}
    assert "p is shown to be worse" in overturned.reason
    file = tmp_path / "run.yaml"
    file.write_text(overturned.yaml, encoding="utf-8")
    assert (load_config(file).sft or {})["objective"] == {"name": "nll"}


def test_a_pilot_without_answers_decides_nothing() -> None:
    own = found("strong", [0.9] * 40)
    settled = settle(own, pilot(nll=0.0, p=0.0))
    assert replace(settled, reason=own.reason) == own
    assert "no candidate gave a single answer" in settled.reason


def test_a_pilot_may_find_what_was_no_candidate_of_the_probe() -> None:
    own = found("intermediate", [0.5])  # f_alpha 0.3, which this pilot has not run
    settled = settle(own, pilot(nll=0.2, p=0.9))
    assert settled.objective == {"name": "p"}
    assert "shown to be worse" not in settled.reason
