"""The process in which answers are compared: JSON lines in, outcomes out. Started by `verifier`, by this file's path.

To compare two formulas is to compute with them, and a model wrote one of the two: `9^{9^{9^9}}` would compute for ever
and take all memory. So every pair is compared in a forked child of its own, which the system itself ends once it has
used its time or asks for more than its memory. What one answer does to the child, no other answer sees.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys

# A child's exit codes. None is one that Python itself ends with.
OUTCOMES = {40: "right", 41: "wrong", 42: "unreadable", 43: "over_memory"}
UNLIMITED = 44
CODES = {outcome: code for code, outcome in OUTCOMES.items()}
CLOCKS = {
    "ITIMER_PROF": "SIGPROF",
    "ITIMER_REAL": "SIGALRM",
}  # each timer, and the signal that it ends a child by
REAL_TIME = 10  # times the processor's: what sleeps, or waits for a swapping machine, ends too


def main() -> None:
    """One line `[reference, answer]` after another from standard input; its outcome, a line, to standard output."""
    seconds, memory = float(sys.argv[1]), int(sys.argv[2])
    logging.disable(logging.CRITICAL)
    compare("1", "1")  # loads the grammar and the patterns once, for every child
    if (outcome := outcome_of("1", "1", seconds, memory)) != "right":
        sys.exit(f"with {seconds:g} seconds and {memory} bytes not even 1 = 1 can be checked ({outcome})")
    for line in sys.stdin:
        reference, answer = json.loads(line)
        print(outcome_of(reference, answer, seconds, memory), flush=True)


def outcome_of(reference: str, answer: str, seconds: float, memory: int) -> str:
    """What becomes of a comparison in a child of its own: one of `verifier.OUTCOMES`."""
    child = os.fork()
    if not child:
        try:
            code = UNLIMITED
            _limit(seconds, memory)
            code = CODES["unreadable"]  # whatever a formula brings the libraries to
            code = CODES[compare(reference, answer)]
        except MemoryError:
            code = CODES["over_memory"]
        finally:  # nothing leaves the child
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        timed = [getattr(signal, name) for name in CLOCKS.values()]
        return "over_time" if os.WTERMSIG(status) in timed else "crashed"
    if os.WEXITSTATUS(status) == UNLIMITED:
        sys.exit(
            "the system does not let a process limit its own time and memory, so no answer can be checked"
        )
    return OUTCOMES.get(os.WEXITSTATUS(status), "crashed")


def compare(reference: str, answer: str) -> str:
    """`right`, `wrong`, or `unreadable` where there is nothing to compare. Both are LaTeX without dollar signs."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    kinds = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    # The library's own limits are signals to Python code, which a long computation in C does not hear.
    how = {"parsing_timeout": None, "raise_on_error": True}
    expected, given = (parse(rf"\boxed{{{text}}}", kinds, **how) for text in (reference, answer))
    if not expected or not given:
        return "unreadable"
    return "right" if verify(expected, given, timeout_seconds=None, raise_on_error=True) else "wrong"


def _limit(seconds: float, memory: int) -> None:
    """Have the system end this process after so many seconds of computing, or refuse it more bytes than so many."""
    for timer, name in CLOCKS.items():
        number = getattr(signal, name)
        signal.signal(number, signal.SIG_DFL)  # which ends the process in the midst of anything
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        signal.setitimer(getattr(signal, timer), seconds * (REAL_TIME if timer == "ITIMER_REAL" else 1))
    if sys.platform != "darwin":  # whose kernel has no such limit
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        most = memory if most == resource.RLIM_INFINITY else min(memory, most)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    silent = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # what a library says goes nowhere
        os.dup2(silent, stream)


if __name__ == "__main__":
    main()
