"""The process that works out whether two answers are equal: one JSON request a line, one answer a line.

    {"answer": "2^{10}", "reference": "1024"}  →  {"verdict": true}
    {"reference": "1024"}                      →  {"verdict": true}      it can be compared with

Started by `iwopd.grading.pool`, which kills it when it takes too long. It ends with its standard input, and by itself
when a request takes several times longer than allowed: then nobody is left who would kill it.
"""

import json
import resource
import signal
import sys
from typing import Any


def main() -> None:
    """Serve until standard input ends. Arguments: seconds per request, bytes of memory."""
    seconds, memory = float(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from iwopd.grading.equality import equal  # slow: it imports sympy

    equal("x", "y")
    answer({"verdict": None})
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, 3 * seconds + 5)  # nothing handles SIGALRM, so it ends the process
        try:
            verdict = judge(json.loads(line))
        except (Exception, RecursionError, MemoryError) as error:  # whatever sympy makes of strange input is no answer
            answer({"verdict": False, "error": type(error).__name__})
        else:
            answer({"verdict": verdict})
        signal.setitimer(signal.ITIMER_REAL, 0)


def judge(request: dict[str, str]) -> bool:
    """One request."""
    from iwopd.grading.comparing import compare, readable
    from iwopd.grading.equality import equal, understood

    if "answer" in request:
        return compare(request["answer"], request["reference"], equal)
    return readable(request["reference"], understood)


def answer(found: dict[str, Any]) -> None:
    """One line."""
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
