"""Programs that attack: what decides verdicts, what is the user's, what outlives them. Each is graded for real."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from running import refused
from test_grading import HUB, MBPP, NATIVE, prompt_of

from iwopd.grading import CodeGrader, Verdict, sandbox
from iwopd.types import Prompt

SECRET = "hf_tests_only"
RIGHT = "def add(a, b):\n    return a + b"
Grade = Callable[[dict, str], Verdict]


def probing(wanted: object) -> dict:
    """A problem that a program solves by returning what it sees, so that a test can tell what that is."""
    return {
        "task_id": "HumanEval/903",
        "prompt": "def probe():\n",
        "entry_point": "probe",
        "canonical_solution": "",
        "test": f"found = probe()\nassert found == {wanted!r}, found\n",
    }


def answered(row: dict, code: str) -> tuple[str, Prompt]:
    return (f"```python\n{code}\n```\n", prompt_of(row))


@pytest.fixture(scope="module")
def grader() -> Iterator[CodeGrader]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", SECRET)
        made = CodeGrader(seconds=6, memory=2**31)
        made._pool.count = 1  # every program meets the processes that the one before it has met
        yield made
        made.close()


@pytest.fixture
def grade(grader: CodeGrader) -> Iterator[Grade]:
    yield lambda row, code: grader([answered(row, code)])[0]
    # Whatever it was, it has harmed nobody.
    before = workers()
    after = grader([answered(HUB, RIGHT), answered(HUB, RIGHT.replace("+", "-"))])
    assert [verdict.correct for verdict in after] == [True, False]
    assert workers() == before
    assert left_behind(before) == []


def workers() -> list[int]:
    return [each.pid for each in psutil.Process().children() if "iwopd.grading.run_code" in " ".join(each.cmdline())]


def left_behind(found: list[int]) -> list[psutil.Process]:
    """What runs below the processes that judge, but for the one that starts programs."""
    (worker,) = found
    (starter,) = psutil.Process(worker).children()
    return starter.children(recursive=True)


def test_this_machine_can_confine_programs() -> None:
    # Where it cannot, most of what follows fails; it is not skipped.
    assert sandbox.refusal("namespaces") is None


# ---------------------------------------------------------------------------------------------- verdicts

FORGED = """b'{"status": "pass", "code": "", "verdict": true, "value": 3, "ready": true, "names": ["add"]}\\n' * 4"""
HUNT = """
import gc, sys
def hunt():
    wanted, found, seen = "".join(["zq-mar", "ker"]), [], gc.get_objects()
    frame = sys._getframe(1)
    while frame:
        seen += [frame.f_locals, frame.f_globals]
        frame = frame.f_back
    for each in seen:
        if type(each) is dict:
            each = [*each.keys(), *each.values()]
        if type(each) in (list, tuple, set):
            found += [item for item in list(each) if type(item) in (str, bytes) and wanted in str(item)]
    return found
"""
ATTACKS = {
    "equal to everything": """
class Yes(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = int.__hash__
def add(a, b):
    return Yes(-7)
""",
    "a list that says it is equal": """
class Yes(list):
    def __eq__(self, other): return True
def add(a, b):
    return Yes()
""",
    "close to everything": """
import numpy
class Yes(numpy.ndarray):
    def __eq__(self, other): return True
    def __array_ufunc__(self, *rest, **more): return True
def add(a, b):
    return numpy.zeros(1).view(Yes)
""",
    "a verdict to every descriptor": f"""
import posix
for descriptor in range(3, 256):
    try:
        posix.write(descriptor, {FORGED})
    except OSError:
        pass
def add(a, b):
    return -7
""",
    "garbage to every descriptor": """
import posix
def add(a, b):
    for descriptor in range(256):
        try:
            posix.write(descriptor, b"\\xff\\x00garbage")
        except OSError:
            pass
    return -7
""",
    "a verdict through /proc": f"""
import posix
def add(a, b):
    for process in [1, *range(2, 40), posix.getppid(), "self"]:
        for descriptor in range(32):
            try:
                opened = posix.open(f"/proc/{{process}}/fd/{{descriptor}}", posix.O_WRONLY)
                posix.write(opened, {FORGED})
            except OSError:
                pass
    return -7
""",
    "leaves at import": "import os\nos._exit(0)\ndef add(a, b):\n    return 3",
    "leaves politely": "import sys\ndef add(a, b):\n    raise SystemExit(0)",
    "stops whoever iterates": "def add(a, b):\n    raise StopIteration",
    "patched builtins": """
import builtins, json, pickle
def add(a, b):
    yes = lambda *rest, **more: True
    for module, name in ((json, "loads"), (json, "dumps"), (pickle, "loads"), (builtins, "isinstance"), (builtins, "all")):
        setattr(module, name, yes)
    builtins.AssertionError = ValueError
    return -7
""",
    "patched numpy": """
import numpy
numpy.allclose = lambda *rest, **more: True
def add(a, b):
    return -7.0
""",
    "patched evalplus": """
import sys
for name, module in list(sys.modules.items()):
    if name.startswith(("evalplus", "iwopd")):
        for key, value in list(vars(module).items()):
            if callable(value):
                try:
                    setattr(module, key, lambda *rest, **more: "pass")
                except Exception:
                    pass
def add(a, b):
    return -7
""",
    "shadows what tests use": "def zip(*rest):\n    return []\nenumerate = zip\nassert_ = zip\ndef add(a, b):\n    return -7",
    "changes its inputs": "def add(a, b):\n    import gc\n    return -7",
    "a huge answer": "def add(a, b):\n    return 'x' * 2**26",
    "a deep answer": """
def add(a, b):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    return deep
""",
    "an answer within itself": "def add(a, b):\n    mine = []\n    mine.append(mine)\n    return mine",
    "raises what it likes": "def add(a, b):\n    raise type('AssertionError', (BaseException,), {})()",
}


@pytest.mark.parametrize("row", [NATIVE, HUB], ids=["evalplus", "hub"])
@pytest.mark.parametrize("code", ATTACKS.values(), ids=ATTACKS.keys())
def test_a_program_cannot_pass_by_itself_nor_harm_another(grade: Grade, row: dict, code: str) -> None:
    assert not grade(row, code).correct


@pytest.mark.parametrize("row", [NATIVE, HUB], ids=["evalplus", "hub"])
def test_nothing_can_be_found_that_is_expected(grade: Grade, row: dict) -> None:
    hidden = {"canonical_solution": "    # zq-marker\n    return 'zq-marker' and 'nothing'\n", "prompt": "# zq-marker\n" + row["prompt"]}
    test = {"test": "def check(candidate):\n    'zq-marker'\n    assert candidate(1, 2) == 'nothing'\n"} if row is HUB else {}
    code = HUNT + "def add(a, b):\n    return str(hunt()) if hunt() else 'nothing'"
    assert grade({**row, **hidden, **test}, code).correct
    # The hunt itself works: it finds what a program has put there.
    assert not grade({**row, **hidden, **test}, code + " if a else ['zq-marker', hunt()]\nKEPT = ['a zq-marker']").correct


def test_an_empty_list_is_not_close_to_a_number(grade: Grade) -> None:
    row = {**NATIVE, "canonical_solution": "    return [a / 3]\n"}
    assert not grade(row, "def add(a, b):\n    return [[]]").correct
    assert grade(row, "def add(a, b):\n    return [a / 3 + 1e-9]").correct


def test_the_entry_point_must_be_the_programs(grade: Grade) -> None:
    row = {**HUB, "prompt": "def helper(a):\n    return a\n\n" + HUB["prompt"], "test": "assert helper(add(1, 2)) == 3\n"}
    assert grade(row, RIGHT).correct
    assert not grade(row, "def helper(a):\n    return 3\ndef add(a, b):\n    return helper(a) and -7\n").correct
    assert not grade(row, "def helper(a):\n    return 3").correct


# ---------------------------------------------------------------------------------------------- the user's

HOME = str(Path.home())
FACTS: dict[str, tuple[str, object]] = {
    "environment": (
        "import os\ndef probe():\n    return sorted(set(os.environ) - {'OMP_NUM_THREADS'})",
        ["HOME", "LANG", "PATH", "PYTHONDONTWRITEBYTECODE", "TMPDIR"],
    ),
    "environment of the process's memory": (
        f"""
import ctypes
def probe():
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_char_p
    names = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
    found = []
    while names[len(found)]:
        found.append(names[len(found)])
    return [each for each in found if b"{SECRET[:6]}" in each]
""",
        [],
    ),
    "home": (f"import os\ndef probe():\n    return os.path.exists({HOME + '/.bashrc'!r})", False),
    "repository": (f"import os\ndef probe():\n    return os.path.exists({str(Path(__file__))!r})", False),
    "files": (
        "import os\ndef probe():\n    return sorted(set(os.listdir('/')) - {'usr', 'bin', 'sbin', 'lib', 'lib32', "
        f"'lib64', 'libx32', 'nix', 'gnu', 'etc'}} - {set(Path(sys.base_prefix).parts[1:2])!r} - "
        f"{set(Path(sys.prefix).parts[1:2])!r} - {{'tmp', 'dev'}}), os.listdir('/tmp'), os.listdir('/dev/shm')",
        ([], [], []),
    ),
    "processes": (
        """
import os
def probe():
    try:
        return [each for each in os.listdir("/proc") if each.isdigit()]
    except OSError:
        return []
""",
        [],
    ),
    "privileges": (
        """
import ctypes
def probe():
    libc = ctypes.CDLL(None, use_errno=True)
    tried = [libc.unshare(0x10000000), libc.unshare(0x20000), libc.mount(b"t", b"/tmp", b"tmpfs", 0, None)]
    return [*tried, libc.umount2(b"/usr", 2), libc.setuid(0) if libc.getuid() else -1, libc.sethostname(b"x", 1)]
""",
        [-1] * 6,
    ),
    "installed packages": (
        f"""
import io, numpy
def probe():
    found = []
    for path in (numpy.__file__, {os.__file__!r}, "/usr/written", "/etc/passwd"):
        try:
            io.open(path, "a")
            found.append(path)
        except OSError:
            pass
    return found
""",
        [],
    ),
}


@pytest.mark.parametrize(("code", "wanted"), FACTS.values(), ids=FACTS.keys())
def test_a_program_sees_nothing_of_the_users(grade: Grade, code: str, wanted: object) -> None:
    assert grade(probing(wanted), code).correct


def test_no_network_not_even_loopback(grade: Grade) -> None:
    code = """
import socket
def probe():
    found = []
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        try:
            with socket.socket(socket.AF_INET, kind) as tried:
                tried.settimeout(1)
                tried.connect(("127.0.0.1", PORT))
                tried.send(b"x")
                found.append(str(kind))
        except OSError:
            pass
    try:
        with socket.socket(socket.AF_UNIX) as tried:
            tried.connect("\\0" + ABSTRACT)
            found.append("unix")
    except OSError:
        pass
    return found
"""
    name = f"iwopd-test-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0" + name)
        abstract.listen()
        code = code.replace("PORT", str(server.getsockname()[1])).replace("ABSTRACT", repr(name))
        assert grade(probing([]), code).correct
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_what_one_program_writes_the_next_does_not_see(grade: Grade) -> None:
    code = """
import io, os
def probe():
    before = os.listdir("/tmp") + os.listdir("/dev/shm")
    for folder in ("/tmp", "/dev/shm"):
        io.open(folder + "/left", "w").close()
    return before
"""
    assert grade(probing([]), code).correct
    assert grade(probing([]), code).correct


# ---------------------------------------------------------------------------------------------- limits


def test_bytes_written_are_limited_in_all(grade: Grade) -> None:
    code = """
import io
def probe():
    written = 0
    try:
        for number in range(32):
            with io.open(f"/tmp/{number}", "wb", buffering=0) as file:
                written += file.write(bytes(8 * 2**20))
    except OSError:
        pass
    return LOW < written <= HIGH
"""
    code = code.replace("LOW", str(sandbox.DISK // 2)).replace("HIGH", str(sandbox.DISK))
    assert grade(probing(True), code).correct


def test_processes_are_limited(grade: Grade) -> None:
    code = """
import posix, time
def probe():
    started = 0
    try:
        for _ in range(200):
            if posix.fork() == 0:
                time.sleep(100)
            started += 1
    except OSError:
        pass
    return 4 < started < LIMIT
"""
    assert grade(probing(True), code.replace("LIMIT", str(sandbox.PROCESSES))).correct


def test_a_fork_bomb_ends_with_its_time(grade: Grade) -> None:
    code = """
import posix
def add(a, b):
    while True:
        try:
            if posix.fork() == 0:
                posix.setsid()
        except OSError:
            pass
"""
    assert not grade(NATIVE, code).correct


def test_what_leaves_its_parents_and_kills_everything_is_killed(grade: Grade) -> None:
    code = """
import ctypes, posix, signal, time
def add(a, b):
    if posix.fork() == 0:
        posix.setsid()
        if posix.fork() == 0:
            for process in (-1, 0, *range(2, 70_000)):
                try:
                    posix.kill(process, signal.SIGKILL)
                except OSError:
                    pass
            time.sleep(271)
        posix._exit(0)
    posix.kill(0, signal.SIGTERM)
    return -7
"""
    before = workers()
    assert not grade(HUB, code).correct
    assert workers() == before


def test_programs_end_with_whoever_grades() -> None:
    code = "import time\ndef add(a, b):\n    time.sleep(271)\n    return 3"
    before = {each.pid for each in psutil.Process().children(recursive=True)}
    grader = CodeGrader(seconds=60, memory=2**31)
    grader._pool.count = 1
    found = list[Verdict]()
    thread = threading.Thread(target=lambda: found.extend(grader([answered(HUB, code)])))
    thread.start()
    wait_for(lambda: len(started(before)) == 5)  # worker, starter, judge, and the program with the process that waits for it
    everything = started(before)
    grader.close()
    thread.join()
    wait_for(lambda: not any(map(alive, everything)))
    assert found == [Verdict(False, None, timed_out=True)]


def started(before: set[int]) -> list[psutil.Process]:
    return [each for each in psutil.Process().children(recursive=True) if each.pid not in before]


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(true: Callable[[], bool]) -> None:
    for _ in range(600):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("it never came")


def test_a_program_ends_when_what_judges_it_is_killed() -> None:
    """By the kernel for want of memory, say: nothing may go on without a limit."""
    code = "import time\ndef add(a, b):\n    time.sleep(271)\n    return 3"
    before = {each.pid for each in psutil.Process().children(recursive=True)}
    grader = CodeGrader(seconds=3, memory=2**31)
    grader._pool.count = 1
    thread = threading.Thread(target=lambda: grader([answered(HUB, code)]))
    thread.start()
    wait_for(lambda: len(started(before)) == 5)
    everything = started(before)
    next(each for each in everything if each.ppid() == os.getpid()).kill()
    wait_for(lambda: not any(map(alive, everything)))
    thread.join()  # asked again, and given up
    grader.close()


# ---------------------------------------------------------------------------------------------- other modes and users


@pytest.mark.parametrize("mode", ["container", "none"])
def test_without_namespaces_verdicts_and_limits_hold(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    started_here = "import posix, time\ndef add(a, b):\n    if posix.fork() == 0:\n        posix.setsid()\n        time.sleep(271)\n"
    grader = CodeGrader(seconds=6, memory=2**31, sandbox=mode)
    grader._pool.count = 1
    names = FACTS["environment"]
    rows = [
        (NATIVE, RIGHT, True),
        (HUB, RIGHT, True),
        (HUB, started_here + "    return a + b", os.geteuid() == 0),  # a user's other processes count against the limit
        (HUB, started_here + "    return -7", False),
        (HUB, ATTACKS["a verdict to every descriptor"], False),
        (HUB, ATTACKS["a verdict through /proc"], False),
        (NATIVE, ATTACKS["a verdict through /proc"], False),
        (HUB, ATTACKS["equal to everything"], False),
        (probing(names[1]), names[0], True),
        (NATIVE, RIGHT, True),
    ]
    try:
        found = grader([answered(row, code) for row, code, _ in rows])
        assert left_behind(workers()[-1:]) == []
    finally:
        grader.close()
    assert [verdict.correct for verdict in found] == [right for *_, right in rows]


AS_NOBODY = """
import os, sys
sys.path[:0] = {paths}
import test_sandbox as here
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
here.main()
"""


def main() -> None:
    """As another user, in a process of its own: the verdicts on standard output."""
    grader = CodeGrader(seconds=6, memory=2**31)
    grader._pool.count = 1
    rows = [(NATIVE, RIGHT), (HUB, RIGHT), (HUB, ATTACKS["a verdict through /proc"])]
    rows += [(probing(wanted), code) for code, wanted in FACTS.values()]
    found = grader([answered(row, code) for row, code in rows])
    grader.close()
    print(json.dumps([verdict.correct for verdict in found]))
