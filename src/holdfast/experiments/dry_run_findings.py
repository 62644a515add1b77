"""What a dry run finds: of each stage what it would do and need; why a run would not start; what could not be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from holdfast.errors import HoldfastError
from holdfast.experiments.config import RunConfig
from holdfast.experiments.devices import Device
from holdfast.experiments.estimate_memory import Memory
from holdfast.experiments.estimate_work import Work
from holdfast.training.config import LeanConfig

T = TypeVar("T")

# Of the GPU's peak rate, what training reaches: assumed. Llama 3's pre-training had 38 to 43 % on H100s (Grattafiori et
# al. 2024, arXiv:2407.21783, table 4).
UTILISATION = 0.4


@dataclass
class StagePlan:
    """What one stage would do and need; None where that could not be told.

    Attributes:
        rows: that it trains on.
        rows_a_step: of the global batch, over all GPUs.
        passes: over the rows.
        work: of its rows, one pass.
        largest: tokens computed and scored in the largest micro-batch.
        assumed_largest: `largest` is what `max_length` allows, the rows are not known.
        memory, sharded: on each GPU; with the model whole, and with it in pieces (FSDP), on several GPUs alone.
        average: `memory` with a micro-batch of average rows in place of the largest.
        operations: of the whole stage.
        seconds: of training, on all GPUs.
    """

    stage: str
    args: LeanConfig
    rows_a_step: int
    rows: int | None = None
    steps: int | None = None
    passes: float | None = None
    work: Work | None = None
    largest: tuple[int, int] = (0, 0)
    assumed_largest: bool = False
    memory: Memory | None = None
    sharded: Memory | None = None
    average: Memory | None = None
    operations: float | None = None
    seconds: float | None = None


@dataclass
class DryRun:
    """What a dry run found.

    Attributes:
        rows: for people: what the check of the rows found, and how they are shared out.
        parameters: (all, trained) numbers of the model.
        refusals: why a real run would not start.
        gaps: what could not be told, and why.
    """

    config: RunConfig
    device: Device
    gpus: int
    stages: list[StagePlan]
    rows: list[str] = field(default_factory=list)
    parameters: tuple[int, int] | None = None
    refusals: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)

    @property
    def would_start(self) -> bool:
        """Whether a real run would come to its first step, as far as can be told without weights and the GPU."""
        return not self.refusals

    def asked(self, work: Callable[[], T]) -> T | None:
        """What `work` returns; None where it refuses the run, and its reason is kept."""
        try:
            return work()
        except HoldfastError as error:
            self.refuse(error)
            return None

    def refuse(self, error: HoldfastError) -> None:
        """Keep why a run would not start, once."""
        if str(error) not in self.refusals:
            self.refusals.append(str(error))

    def gap(self, reason: str) -> None:
        """Keep what could not be told, once."""
        if reason not in self.gaps:
            self.gaps.append(reason)
