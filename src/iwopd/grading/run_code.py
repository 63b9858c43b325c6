"""The process that runs programs against their tests: one JSON request a line, one answer a line.

    {"response": "```python …", "problem": {…}}  →  {"status": "pass", "code": "def f…"}      or fail, or timeout

Each program runs in a child with a folder of its own; children that outlive it are found and killed, for this process
adopts them. Started by `iwopd.grading.pool`; evalplus is imported here and nowhere else.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from typing import Any

ADOPT = 36  # prctl's PR_SET_CHILD_SUBREAPER
DISK = 64 * 2**20  # bytes of a file that a program may write
LONG = 400  # lines; evalplus' extraction tries every pair of them


def main() -> None:
    """Serve until standard input ends. Arguments: seconds per program, bytes of memory."""
    seconds, memory = float(sys.argv[1]), int(sys.argv[2])
    os.environ["EVALPLUS_MAX_MEMORY_BYTES"] = str(memory)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):  # only Linux has it
        ctypes.CDLL(None).prctl(ADOPT, 1, 0, 0, 0)
    import evalplus.eval
    import evalplus.gen.util
    import evalplus.sanitize  # noqa: F401  imported once, so that children have it

    say({"status": None})
    for line in sys.stdin:
        say(run(json.loads(line), seconds, memory))


def say(found: dict[str, Any]) -> None:
    """One line."""
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def run(request: dict[str, Any], seconds: float, memory: int) -> dict[str, Any]:
    """Judge one program in a child."""
    from iwopd.grading.programs import code_block

    problem = request["problem"]
    found = {"status": "timeout", "code": code_block(request["response"], problem["entry_point"])}
    folder = tempfile.mkdtemp(prefix="iwopd-code-")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(found["code"], problem, folder, writing, seconds, memory)
    os.close(writing)
    try:
        said = _read(reading, time.monotonic() + seconds)
        if said:
            found |= json.loads(said)
        elif said == b"":  # it ended without a word
            found["status"] = "fail"
    except ValueError:
        found["status"] = "fail"
    finally:
        os.close(reading)
        kill_children()
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _read(reading: int, limit: float) -> bytes | None:
    """All a child says; None where it takes too long."""
    said = b""
    while True:
        left = limit - time.monotonic()
        if left <= 0 or not select.select([reading], [], [], left)[0]:
            return None
        chunk = os.read(reading, 65536)
        if not chunk:
            return said
        said += chunk
        if said.endswith(b"\n"):
            return said


def kill_children() -> None:
    """All descendants, those that have left their parents too; again, while some are born."""
    import psutil

    for _ in range(100):
        left = psutil.Process().children(recursive=True)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not left:
            return
        time.sleep(0.01)


def _child(code: str, problem: dict[str, Any], folder: str, writing: int, seconds: float, memory: int) -> None:
    """Never returns."""
    leave = os._exit
    try:
        os.chdir(folder)
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (DISK, DISK))
        cpu = int(seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
        found = judge(code, problem, memory)
        os.write(writing, json.dumps(found).encode() + b"\n")
    except BaseException:  # programs raise what they like, SystemExit included
        os.write(writing, b'{"status": "fail"}\n')
    finally:
        leave(0)


def judge(code: str, problem: dict[str, Any], memory: int) -> dict[str, Any]:
    """Run a program against its tests; in a process of its own, for the guard takes functions away from it."""
    from evalplus.sanitize import sanitize

    if code.count("\n") <= LONG:
        code = sanitize(code, problem["entry_point"])
    status = _by_inputs(code, problem) if problem.get("base_input") is not None else _by_test(code, problem, memory)
    return {"status": status, "code": code}


def _by_inputs(code: str, problem: dict[str, Any]) -> str:
    """evalplus' own format: outputs are compared with those of the reference solution."""
    from evalplus.data.mbpp import mbpp_deserialize_inputs
    from evalplus.eval import MBPP_OUTPUT_NOT_NONE_TASKS, untrusted_check
    from evalplus.gen.util import trusted_exec

    name, task = problem["entry_point"], str(problem["task_id"])
    dataset = "mbpp" if task.startswith("Mbpp") else "humaneval"
    for kind in ("base_input", "plus_input"):
        inputs = problem[kind]
        if not inputs:
            continue
        if dataset == "mbpp":
            inputs = mbpp_deserialize_inputs(task, inputs)
        reference = problem["prompt"] + problem["canonical_solution"]
        not_none = dataset == "mbpp" and name in MBPP_OUTPUT_NOT_NONE_TASKS
        times: Any
        expected, times = trusted_exec(reference, inputs, name, record_time=True, output_not_none=not_none)
        atol = problem.get("atol") or 0
        status, _ = untrusted_check(dataset, code, inputs, name, expected, atol, times, fast_check=True)
        if status != "pass":
            return status
    return "pass"


def _by_test(code: str, problem: dict[str, Any], memory: int) -> str:
    """The hub's format: a program that raises where the answer is wrong."""
    from evalplus.eval.utils import reliability_guard, swallow_io

    name, space = problem["entry_point"], dict[str, Any]()
    program, test = compile(code, "answer", "exec"), compile(str(problem["test"]), "test", "exec")
    imports = problem.get("test_imports") or []
    reliability_guard(maximum_memory_bytes=memory)
    with swallow_io():
        exec("\n".join(imports), space)
        exec(program, space)
        function = space[name] if name else None
        exec(test, space)
        if "check" in space and function is not None and "def check(" in problem["test"]:
            space["check"](function)
    return "pass"


if __name__ == "__main__":
    main()
