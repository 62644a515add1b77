"""Which objective for this model and these rows: a probe, the regime it stands in, and a pilot that settles it.

demonstrations.py   rows as supervised fine-tuning takes them
blind_guess.py      which target tokens carry information: those that the other rows' answers do not give away
scoring.py          the probability of every target token, through the lean forward
intervals.py        ratios of sums, with intervals clustered by row and prompt
summary.py          means, histogram, percentiles, groups by place and source
hardest.py          the rows of least probability
regime.py           weak, intermediate, strong, and the boundaries between
recommendation.py   the objective for a regime, its reason, caveats and YAML
report.py           what a probe found, as plain data
measure.py          `probe`
answers.py          answers to held-out prompts, and whether they are right
pilot.py            a few steps with each candidate, on the same rows
pilot_report.py     what a pilot measured
"""

from __future__ import annotations

from holdfast.capability.intervals import Estimate
from holdfast.capability.measure import probe
from holdfast.capability.pilot import pilot
from holdfast.capability.pilot_report import PilotReport
from holdfast.capability.report import CapabilityReport

__all__ = [
    "CapabilityReport",
    "Estimate",
    "PilotReport",
    "pilot",
    "probe",
]
