"""The process that judges programs by their tests: one JSON request a line, one answer a line.

    {"response": "```python …", "problem": {…}}  →  {"status": "pass", "code": "def f…"}      or fail, or timeout

Four kinds of processes, each forked from the one before it:

    this one                  reads requests; a time limit for each
    ├── the starter           forked before the first request; starts programs, confined (`starter`, `sandbox`)
    │   └── a program         gets inputs, returns values (`program`)
    └── a judge per request   runs the reference solution and the test, and compares (`judging`)

Started by `iwopd.evaluation.grading.pool`; evalplus is imported here and in what it imports, and nowhere else.
"""

import contextlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from typing import Any

from evalplus.eval import query_maximum_memory_bytes

from iwopd.evaluation.grading import sandbox
from iwopd.evaluation.grading.judging import Problem, Unconfined, Unsendable, judge
from iwopd.evaluation.grading.lines import Broken, Late, Lines, Message
from iwopd.evaluation.grading.programs import code_block
from iwopd.evaluation.grading.starter import Starter

STATUS = {"status": str, "code": str}


def main() -> None:
    """Serve until standard input ends. Arguments: descriptor to answer at, seconds and bytes for a program, mode."""
    descriptor, seconds, memory, mode = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sandbox.close_to_others()
    os.environ["EVALPLUS_MAX_MEMORY_BYTES"] = str(memory)
    memory = query_maximum_memory_bytes() or memory  # no more than the machine has
    starter = Starter(mode, seconds, memory)
    lines = Lines(0, descriptor, longest=None)
    try:
        starter.start()
        problem = None
    except Unconfined as error:
        problem = str(error)
    starter.end()
    lines.send({"ready": problem is None, "problem": problem})
    lines.serve(lambda request: run(request, starter, seconds, memory))


def run(request: Message, starter: Starter, seconds: float, memory: int) -> Message:
    """Judge one program, in a child."""
    problem = request["problem"]
    code = code_block(request["response"], problem["entry_point"])
    folder = tempfile.mkdtemp(prefix="iwopd-judge-")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _judge(code, problem, folder, Lines(reading, writing), starter, seconds, memory)
    os.close(writing)
    try:
        found = {"code": code} | Lines(reading, reading).receive(time.monotonic() + seconds)
    except Late:
        found = {"status": "timeout", "code": code}
    except Broken:  # it ended without a word
        found = {"status": "fail", "code": code}
    finally:
        os.close(reading)
        for kill in (os.killpg, os.kill):  # it may not have become a group yet
            with contextlib.suppress(ProcessLookupError):
                kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if not starter.end():
            os._exit(1)  # killed, as another program can without namespaces: the pool asks another process
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _judge(
    code: str, problem: Problem, folder: str, lines: Lines, starter: Starter, seconds: float, memory: int
) -> None:
    """Never returns."""
    leave = os._exit
    try:
        os.setpgid(0, 0)  # to be killed with what it starts
        sandbox.die_with_parent()
        os.chdir(folder)
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (sandbox.DISK, sandbox.DISK))
        cpu = int(seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        lines.send(_found(code, problem, starter))
    except BaseException:
        lines.send({"status": "fail"})
    finally:
        leave(0)


def _found(code: str, problem: Problem, starter: Starter) -> dict[str, Any]:
    try:
        status, code = judge(code, problem, starter.start)
    except Unconfined as error:
        return {"status": "unconfined", "note": str(error)}
    except Unsendable as error:
        return {"status": "unsendable", "note": str(error)}
    return {"status": status, "code": code}


if __name__ == "__main__":
    main()
