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
def add(a, b):
    for descriptor in range(3, 256):
        try:
            posix.write(descriptor, {FORGED})
        except OSError:
            pass
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
    "leaves at import": "import os\nLEFT = os._exit(0)\ndef add(a, b):\n    return LEFT or 3",
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
PATCHED = setattr(numpy, "allclose", lambda *rest, **more: True)
def add(a, b):
    return PATCHED or -7.0
""",
    "patched evalplus": """
import sys
def add(a, b):
    for name, module in list(sys.modules.items()):
        if name.startswith(("evalplus", "iwopd")):
            for key, value in list(vars(module).items()):
                if callable(value):
                    setattr(module, key, lambda *rest, **more: "pass")
    return -7
""",
    "shadows what tests use": (
        "def zip(*rest):\n    return []\nenumerate = zip\nAssertionError = ValueError\n"
        "def check(*rest):\n    return zip\ndef add(a, b):\n    return -7 if enumerate and AssertionError and check else 0"
    ),
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
    hidden = {
        "canonical_solution": "    # zq-marker\n    return 'zq-marker' and 'nothing'\n",
        "prompt": "# zq-marker\n" + row["prompt"],
    }
    test = (
        {"test": "def check(candidate):\n    'zq-marker'\n    assert candidate(1, 2) == 'nothing'\n"}
        if row is HUB
        else {}
    )
    code = HUNT + "def add(a, b):\n    return str(hunt()) if hunt() else 'nothing'"
    assert grade({**row, **hidden, **test}, code).correct
    # The hunt itself works: it finds what a program has put there.
    assert not grade(
        {**row, **hidden, **test}, code + " if a else ['zq-marker', hunt()]\nKEPT = ['a zq-marker']"
    ).correct


def test_an_empty_list_is_not_close_to_a_number(grade: Grade) -> None:
    row = {**NATIVE, "canonical_solution": "    return [a / 3]\n"}
    assert not grade(row, "def add(a, b):\n    return [[]]").correct
    assert grade(row, "def add(a, b):\n    return [a / 3 + 1e-9]").correct


def test_the_entry_point_must_be_the_programs(grade: Grade) -> None:
    row = {
        **HUB,
        "prompt": "def helper(a):\n    return a\n\n" + HUB["prompt"],
        "test": "assert helper(add(1, 2)) == 3\n",
    }
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
    for path in (numpy.__file__, {os.__file__!r}, "/usr/written"):
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
    wait_for(
        lambda: len(started(before)) == 5
    )  # worker, starter, judge, and the program with the process that waits for it
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


def test_an_ordinary_user_can_confine_programs_too(tmp_path: Path) -> None:
    """As nobody, where this is root: with Python's files put where another user can read them."""
    command = [sys.executable, "-c", "import test_sandbox; test_sandbox.grade_all()"]
    source = Path(sandbox.__file__).parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{source}:{Path(__file__).parent}",
        "HF_TOKEN": SECRET,
        "HOME": "/nonexistent",
    }
    if os.geteuid() == 0:
        user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]
        script = [
            *opened([Path(sys.base_prefix), Path(sys.prefix), source, Path(__file__).parent], tmp_path),
            'exec "$@"',
        ]
        command = ["unshare", "--mount", "sh", "-ec", "\n".join(script), "sh", *user, *command]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    uid, *verdicts = json.loads(done.stdout)
    assert uid != 0
    assert verdicts == [True, True, False] + [True] * len(FACTS)


def opened(needed: list[Path], stage: Path) -> list[str]:
    """Shell commands, for a namespace of mounts, by which these can be read although a folder above them is closed."""
    before, after, covered = list[str](), list[str](), set[Path]()
    for number, path in enumerate(needed):
        closed = [above for above in reversed(path.parents) if not above.stat().st_mode & 1][:1]
        if closed:
            place = stage / str(number)
            before += [f"mkdir {place}", f"mount --rbind {path} {place}"]
            after += [f"mkdir -p {path}", f"mount --rbind {place} {path}"]
            covered.update(closed)
    return [*before, *(f"mount -t tmpfs -o mode=755 tmpfs {each}" for each in covered), *after]


def grade_all() -> None:
    """In a process of its own: who it is, and verdicts, on standard output."""
    grader = CodeGrader(seconds=6, memory=2**31)
    grader._pool.count = 1
    rows = [(NATIVE, RIGHT), (HUB, RIGHT), (HUB, ATTACKS["a verdict through /proc"])]
    rows += [(probing(wanted), code) for code, wanted in FACTS.values()]
    found = grader([answered(row, code) for row, code in rows])
    grader.close()
    print(json.dumps([os.geteuid(), *(verdict.correct for verdict in found)]))


def test_where_the_kernel_forbids_it_evaluation_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forbidden = [
        "unshare",
        "--user",
        "--map-root-user",
        "sh",
        "-c",
        'echo 0 >/proc/sys/user/max_user_namespaces; exec "$@"',
        "sh",
    ]
    asked = [
        sys.executable,
        "-c",
        "from iwopd.grading.sandbox import refusal as r; print(*map(r, ('namespaces', 'container', 'none')), sep='|')",
    ]
    done = subprocess.run([*forbidden, *asked], capture_output=True, text=True, check=True)
    reason, container, none = done.stdout.strip().split("|")
    assert reason.startswith("unshare: ")
    assert container == none == "None"

    monkeypatch.setattr("iwopd.build.evaluation.refusal", lambda mode: reason if mode == "namespaces" else None)
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps(HUB) + "\n")
    settings = [
        "benchmark=[humaneval_plus]",
        f"eval.benchmarks.humaneval_plus.path={file}",
        "eval.allow_code_execution=true",
    ]
    for mode in ("auto", "namespaces"):
        line = refused(
            capsys,
            "eval",
            *settings,
            f"eval.sandbox={mode}",
            "eval.model=toy://smoke/student",
            f"run.dir={tmp_path / 'run'}",
        )
        assert line.startswith(
            f"iwopd: eval.sandbox={mode}: programs that the model wrote cannot be confined here: unshare: "
        )
        assert "eval.sandbox=container" in line
        assert "eval.sandbox=none" in line
    assert not (tmp_path / "run").exists()
    assert "torch" not in done.stdout


# ---------------------------------------------------------------------------------------------- honest programs


def native(task: str, name: str, inputs: list, solution: str, atol: float = 0) -> dict:
    return {
        "task_id": task,
        "prompt": f"def {name}(*rest):\n",
        "entry_point": name,
        "canonical_solution": solution,
        "base_input": inputs[:1],
        "plus_input": inputs[1:],
        "atol": atol,
    }


HALF = native("HumanEval/904", "half", [[1.0], [2.5], [1e-9]], "    return rest[0] / 3\n")
SAME = native("HumanEval/905", "same", [[[3, 1, 2]], [[1]], [[]]], "    return sorted(rest[0])\n")
BIG = native("HumanEval/906", "big", [[3], [200], [20_000]], "    import math\n    return 10 ** rest[0]\n")
ZERO = native(
    "HumanEval/32", "find_zero", [[[1, 2]], [[-6, 11, -6, 1]]], "    return -0.5 if len(rest[0]) == 2 else 1.0\n", 1e-4
)
SHARED = native(
    "Mbpp/2",
    "similar_elements",
    [[[3, 4, 5], [5, 7, 4]], [[1], [2]]],
    "    return tuple(set(rest[0]) & set(rest[1]))\n",
)
MATCH = native(
    "Mbpp/300", "check_str", [["annie"], ["xyz"]], "    import re\n    return re.search('^[aeiou]', rest[0])\n"
)
EQUIVALENT = native("Mbpp/164", "are_equivalent", [[36, 57], [2, 4]], "    return False\n")
DIVISORS = native(
    "Mbpp/295", "sum_div", [[8], [12]], "    return sum(i for i in range(1, rest[0]) if rest[0] % i == 0)\n"
)
PYRAMID = native("Mbpp/581", "surface_Area", [[3, 4], [4, 5]], "    return 33 if rest[0] == 3 else 56\n")
DIGITS = native(
    "Mbpp/558", "digit_distance_nums", [[1, 2], [23, 56]], "    return sum(map(int, str(abs(rest[0] - rest[1]))))\n"
)
ANGLE = native(
    "Mbpp/124",
    "angle_complex",
    [["0.0", "1j"], ["2.0", "1j"]],
    "    import cmath\n    return cmath.phase(rest[0] + rest[1])\n",
)
EMPTY = native("Mbpp/115", "empty_dit", [[[{}, {}]], [[[1], []]]], "    return not any(rest[0])\n")
COUNTS = native("HumanEval/907", "count", [["abca"], [""]], "    return {c: rest[0].count(c) for c in rest[0]}\n")
# What evalplus 0.3.1 itself says of each when it runs the program in its own process.
HONEST: list[tuple[dict, str, bool]] = [
    (HALF, "def half(x):\n    return x / 3", True),
    (HALF, "def half(x):\n    return x * 0.3333333333", True),
    (HALF, "def half(x):\n    return x * 0.3334", False),
    (HALF, "import numpy\ndef half(x):\n    return numpy.float64(x) / 3", True),
    (HALF, "import numpy\ndef half(x):\n    return numpy.float32(x) / 3", True),  # equal, as numpy promotes
    (HALF, "from fractions import Fraction\ndef half(x):\n    return Fraction(x) / 3", False),
    (SAME, "def same(x):\n    x.sort()\n    return x", True),
    (SAME, "def same(x):\n    return tuple(sorted(x))", False),
    (SAME, "def same(x):\n    return (each for each in sorted(x))", False),
    (SAME, "from collections import deque\ndef same(x):\n    return deque(sorted(x))", False),
    (SAME, "class Mine(list):\n    pass\ndef same(x):\n    return Mine(sorted(x))", True),
    (SAME, "def same(x, seen=[]):\n    seen.append(x)\n    return sorted(x) if len(seen) < 3 else None", True),
    (SAME, "def same(x, seen=[]):\n    seen.append(x)\n    return sorted(x) if len(seen) < 2 else None", False),
    (BIG, "def big(n):\n    return 10 ** n", True),
    (BIG, "def big(n):\n    return 10.0 ** n", False),
    (BIG, "def big(n):\n    return 10 if n == 1 else 10 * big(n - 1)", False),
    # evalplus 0.3.1 never counts this one as done, so all fail.
    (ZERO, "def find_zero(xs):\n    return -0.5 if len(xs) == 2 else 3.00000001", False),
    (ZERO, "def find_zero(xs):\n    return -0.4", False),
    (SHARED, "def similar_elements(a, b):\n    return [each for each in a if each in b]", True),
    (SHARED, "def similar_elements(a, b):\n    return (each for each in a if each in b)", True),
    (SHARED, "def similar_elements(a, b):\n    return a", False),
    (MATCH, "import re\ndef check_str(text):\n    return re.match('[aeiou]', text)", True),
    (MATCH, "import re\ndef check_str(text):\n    return re.match('[aeiou]', text) is not None", True),
    (MATCH, "import re\ndef check_str(text):\n    return re.match('z', text)", False),
    (EQUIVALENT, "def are_equivalent(a, b):\n    return True", True),
    (EQUIVALENT, "def are_equivalent(a, b):\n    raise ValueError", False),
    (DIVISORS, "def sum_div(n):\n    return 0", True),
    (DIVISORS, "def sum_div(n):\n    return 1", False),
    (PYRAMID, "def surface_Area(b, h):\n    return round(b * b + 2 * b * ((b / 2) ** 2 + h * h) ** 0.5)", True),
    (PYRAMID, "def surface_Area(b, h):\n    return 1", False),
    (DIGITS, "def digit_distance_nums(a, b):\n    return abs(a % 10 - b % 10) + abs(a // 10 - b // 10)", True),
    (DIGITS, "def digit_distance_nums(a, b):\n    return -1", False),
    (ANGLE, "import cmath\ndef angle_complex(a, b):\n    return cmath.phase(a + b)", True),
    (EMPTY, "def empty_dit(x):\n    return all(not each for each in x)", True),
    (COUNTS, "from collections import Counter\ndef count(text):\n    return Counter(text)", True),
    (
        COUNTS,
        "from collections import defaultdict\ndef count(text):\n    d = defaultdict(int)\n    for c in text:\n        d[c] += 1\n    return d",
        True,
    ),
    (COUNTS, "def count(text):\n    return list(text)", False),
    (HUB, "import numpy\ndef add(a, b):\n    return numpy.int64(a + b)", True),
    (HUB, "def add(a, b):\n    return float(a + b)", True),
    (MBPP, "def add(a, b):\n    print(a, b)\n    return a + b", True),
    (MBPP, "def other(a):\n    return a\ndef add(a, b):\n    return other(a) + b", True),
]


def test_honest_programs_are_judged_as_evalplus_does(grader: CodeGrader) -> None:
    found = grader([answered(row, code) for row, code, _ in HONEST])
    wrong = [
        (code, verdict) for (_, code, right), verdict in zip(HONEST, found, strict=True) if verdict.correct is not right
    ]
    assert wrong == []
