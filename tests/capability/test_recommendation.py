"""What is recommended where, the caveats that the figures call for, and that the YAML loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from holdfast.capability.demonstrations import RowSettings
from holdfast.capability.intervals import Estimate
from holdfast.capability.pilot_report import PilotReport, Scores, compare
from holdfast.capability.recommendation import NEW_FORMAT, OBJECTIVES, Recommendation, recommend, settle
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


def found(
    name: Name,
    p: list[float],
    whole_answer: float = 0.0,
    rows: int = 60,
    prompts: int | None = None,
    new_format: float | None = None,
) -> Recommendation:
    own = summary(p, rows)
    return recommend(
        Regime(name),
        own,
        own,
        Estimate(new_format, new_format, new_format),
        Estimate(whole_answer),
        RUN,
        prompts=rows if prompts is None else prompts,
    )


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
        Regime("weak"),
        own,
        None,
        Estimate(None),
        Estimate(None),
        settings.run("folder: with # marks", "a 'b'/ü.jsonl"),
        prompts=60,
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
    for name in OBJECTIVES:
        assert said(found(name, [0.5]), "The proxy believes the model's own confidence")


def test_known_answers_in_a_new_format_are_not_left_to_an_objective_that_spares_it(tmp_path: Path) -> None:
    new = found("strong", [0.9] * 40, new_format=0.493)
    assert new.objective == {"name": "f_alpha", "alpha": 0.3}
    assert "not the format they stand in" in new.reason
    assert new.caveats[0].startswith("The answers are known, their format is not (yet): 49.3% of the tokens")
    (tmp_path / "run.yaml").write_text(new.yaml, encoding="utf-8")
    assert (load_config(tmp_path / "run.yaml").sft or {})["objective"] == {"name": "f_alpha", "alpha": 0.3}
    for share in (None, 0.0, 0.004, NEW_FORMAT - 1e-9):
        assert found("strong", [0.9] * 40, new_format=share).objective == {"name": "p"}
    assert found("strong", [0.9] * 40, new_format=NEW_FORMAT).objective == new.objective
    assert found("weak", [0.1], new_format=0.5).objective == {"name": "nll"}
    own = summary([0.9] * 40)
    for handful in (Estimate(0.2), Estimate(0.2, 0.0, 0.4)):  # of tokens given away: not shown to be so many
        judged = recommend(Regime("strong"), own, own, handful, Estimate(0.0), RUN, prompts=60)
        assert judged.objective == {"name": "p"}


def test_few_rows_and_few_prompts_are_said() -> None:
    assert said(found("undecided", [0.9], rows=1), "Only 1 row of 1 different prompt: too few to tell")
    assert said(found("undecided", [0.9], rows=9), "10 different prompts are needed")
    few = found("weak", [0.1], rows=20)
    assert said(few, "Only 20 rows of 20 different prompts")
    assert not said(few, "too few to tell")
    assert said(found("weak", [0.1], rows=180, prompts=45), "Only 180 rows of 45 different prompts")
    assert not said(found("weak", [0.1], rows=180, prompts=60), "different prompts")
    mostly_given_away = recommend(
        Regime("weak"), summary([0.9]), summary([0.1], 20), Estimate(0.0), Estimate(0.0), RUN, prompts=60
    )
    assert said(mostly_given_away, "Of 60 rows only 20 have a token that carries information")


def pilot(nll: float, p: float, rows: int = 40, asked: bool = True, steps: int = 100) -> PilotReport:
    """A pilot in which each objective answers a share of the rows, the same ones first."""

    def scores(share: float) -> Scores:
        right = (np.arange(rows) < share * rows).astype(float)
        return Scores(-np.ones(rows), np.ones(rows), right, right, np.full(rows, float(asked)))

    arms, winners = compare(
        {"nll": scores(nll), "p": scores(p)}, {"nll": {"name": "nll"}, "p": {"name": "p"}}, {}, seed=0
    )
    return PilotReport(steps, 400, rows, rows * asked, 64, 1, 0, {}, arms, winners)


def test_a_pilot_overturns_only_what_it_shows_to_be_worse(tmp_path: Path) -> None:
    own = found("strong", [0.9] * 40)
    agreed = settle(own, pilot(nll=0.5, p=0.9), RUN)
    assert agreed.objective == {"name": "p"}
    assert "steps agrees: by its answers the best is p" in agreed.reason
    close = settle(own, pilot(nll=0.525, p=0.5), RUN)
    assert close.objective == {"name": "p"}
    assert "steps does not contradict it: by its answers the best is nll" in close.reason
    assert "not shown to be worse: p" in close.reason
    assert "agrees" not in close.reason
    overturned = settle(own, pilot(nll=0.9, p=0.5), RUN)
    assert overturned.objective == {"name": "nll"}
    assert "p is shown to be worse" in overturned.reason
    file = tmp_path / "run.yaml"
    file.write_text(overturned.yaml, encoding="utf-8")
    assert (load_config(file).sft or {})["objective"] == {"name": "nll"}


def test_a_pilot_without_answers_decides_nothing() -> None:
    own = found("strong", [0.9] * 40)
    settled = settle(own, pilot(nll=0.0, p=0.0, steps=1), RUN)
    assert replace(settled, reason=own.reason) == own
    assert "The pilot of 1 step leaves it at that: no candidate gave a single answer" in settled.reason


def test_a_pilot_that_generated_nothing_says_why() -> None:
    settled = settle(found("strong", [0.9] * 40), pilot(nll=0.0, p=0.0, asked=False), RUN)
    assert "most held-out answers have more than 64 tokens" in settled.reason
    assert "no candidate gave" not in settled.reason


@pytest.mark.parametrize(("nll", "p"), [(0.0, 0.0), (0.5, 0.9), (0.9, 0.5)])
def test_the_file_after_a_pilot_has_its_settings(nll: float, p: float, tmp_path: Path) -> None:
    run = RUN | {"adapter": None, "sft": {"learning_rate": 1e-3}}
    settled = settle(found("strong", [0.9] * 40), pilot(nll, p), run)
    (tmp_path / "run.yaml").write_text(settled.yaml, encoding="utf-8")
    config = load_config(tmp_path / "run.yaml")
    assert config.adapter is None
    assert config.sft == {"learning_rate": 1e-3, "objective": settled.objective}


def test_a_pilot_may_find_what_was_no_candidate_of_the_probe() -> None:
    own = found("intermediate", [0.5])  # f_alpha 0.3, which this pilot has not run
    settled = settle(own, pilot(nll=0.2, p=0.9), RUN)
    assert settled.objective == {"name": "p"}
    assert "shown to be worse" not in settled.reason
