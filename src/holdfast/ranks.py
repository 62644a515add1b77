"""What the processes of one run do together: find each other, and leave to one what is done once.

A launcher (torchrun, `accelerate launch`) starts them and numbers them in the environment. Each of these functions is
to be called by all of them, at the same point; in a run of one process they cost nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed

from holdfast.errors import HoldfastError, PeerError

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")

# Checking and tokenizing many rows takes longer than a collective may: a wait for it ends when that does.
PATIENCE = timedelta(days=7)


def joined() -> PartialState:
    """The processes of this run, connected."""
    from accelerate import PartialState

    return PartialState(cpu=on_cpu())


def on_cpu() -> bool:
    """Whether several processes are to train on CPUs: as told (`ACCELERATE_USE_CPU`), or for want of anything else.

    Accelerate leaves launched processes that find no accelerator to themselves: each would train the whole run.
    """
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on"):
        return True
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device is None or device.type in ("cpu", "mps")  # mps: one device, which processes cannot share


def together() -> bool:
    """Whether several processes are connected."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def is_main() -> bool:
    """Whether this is the run's first process, which writes for all."""
    return not together() or distributed.get_rank() == 0


def once(work: Callable[[], T]) -> T:
    """What `work` returns on the run's first process; it is called there alone, and the others wait.

    Raises:
        Exception: whatever `work` raises; in the other processes `PeerError`, with its message and exit code.
    """
    return _shared(work, is_main()) if together() else work()


def once_a_node(work: Callable[[], T]) -> T:
    """As `once`, on the first process of each node, for what is kept on a node's own disk."""
    return _shared(work, int(os.environ.get("LOCAL_RANK", "0")) == 0) if together() else work()


def _shared(work: Callable[[], T], mine: bool) -> T:
    """`work` where it is `mine`; its outcome everywhere: of this node's process, or of the first that did it."""
    value: T | None = None
    error: Exception | None = None
    if mine:
        try:
            value = work()
        except Exception as raised:
            error = raised
    host = socket.gethostname()
    outcomes: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(
        outcomes, (mine, host, value, _told(error)) if mine else None, group=_waiting_group()
    )
    if error is not None:
        raise error
    done = [outcome for outcome in outcomes if outcome is not None]
    for _, _, _, told in done:
        if told is not None:
            raise PeerError(*told)
    if mine:
        return value  # type: ignore[return-value]
    near = [outcome for outcome in done if outcome[1] == host]
    shared: T = (near or done)[0][2]
    return shared


def _told(error: Exception | None) -> tuple[str, int] | None:
    """An error as the other processes hear of it: its message, and its exit code."""
    if error is None:
        return None
    if isinstance(error, HoldfastError):
        return str(error), error.exit_code
    return f"process {distributed.get_rank()} failed: {type(error).__name__}: {error}", 1


_groups: dict[Any, Any] = {}  # by the default group: a new one needs a new one


def _waiting_group() -> Any:
    """All processes, connected by a back end that waits without a device and is patient."""
    world = distributed.group.WORLD
    if world not in _groups:
        _groups.clear()
        has_gloo = distributed.is_gloo_available()
        _groups[world] = distributed.new_group(backend="gloo", timeout=PATIENCE) if has_gloo else world
    return _groups[world]
