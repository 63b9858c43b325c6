"""The process that works out whether two answers are equal: one JSON request a line, one answer a line.

    {"answer": "2^{10}", "reference": "1024"}  →  {"verdict": true}
    {"reference": "1024"}                      →  {"verdict": true}      it can be compared with

Started by `iwopd.evaluation.grading.pool`, which kills it when it takes too long. It ends with its standard input, and
by itself when a request takes several times longer than allowed: then nobody is left who would kill it.
"""

import os
import resource
import signal
import sys

from iwopd.evaluation.grading.comparing import compare, readable
from iwopd.evaluation.grading.equality import equal, understood
from iwopd.evaluation.grading.lines import Lines, Message


def main() -> None:
    """Serve until standard input ends. Arguments: descriptor to answer at, seconds per request, bytes of memory."""
    descriptor, seconds, memory = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    os.set_inheritable(descriptor, False)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    equal("x", "y")
    lines = Lines(0, descriptor, longest=None)
    lines.send({"ready": True})
    lines.serve(lambda request: answer(request, seconds))


def answer(request: Message, seconds: float) -> Message:
    """One request, in time."""
    signal.setitimer(signal.ITIMER_REAL, 3 * seconds + 5)  # nothing handles SIGALRM, so it ends the process
    try:
        return {"verdict": judge(request)}
    except (Exception, RecursionError, MemoryError) as error:  # whatever sympy makes of strange input is no answer
        return {"verdict": False, "error": type(error).__name__}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def judge(request: dict[str, str]) -> bool:
    """One request."""
    if "answer" in request:
        return compare(request["answer"], request["reference"], equal)
    return readable(request["reference"], understood)


if __name__ == "__main__":
    main()
