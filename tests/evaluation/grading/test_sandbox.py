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
from support.attacks import ATTACKS, FACTS, HUNT, RIGHT, SECRET, answered, probing
from support.paths import TESTS
from support.programs import HUB, NATIVE, one_process
from support.running import refused

from iwopd.evaluation.grading import CodeGrader, Verdict, sandbox

pytestmark = pytest.mark.process

Grade = Callable[[dict, str], Verdict]


@pytest.fixture(scope="module")
def grader() -> Iterator[CodeGrader]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", SECRET)
        made = one_process(seconds=6, memory=2**31)
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
    return [
        each.pid
        for each in psutil.Process().children()
        if "iwopd.evaluation.grading.run_code" in " ".join(each.cmdline())
    ]


def left_behind(found: list[int]) -> list[psutil.Process]:
    """What runs below the processes that judge, but for the one that starts programs."""
    (worker,) = found
    (starter,) = psutil.Process(worker).children()
    return starter.children(recursive=True)


def test_this_machine_can_confine_programs() -> None:
    # Where it cannot, most of what follows fails; it is not skipped.
    assert sandbox.refusal("namespaces") is None


# ---------------------------------------------------------------------------------------------- verdicts


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
    grader = one_process(seconds=60, memory=2**31)
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
    grader = one_process(seconds=3, memory=2**31)
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
    started_here = (
        "import posix, time\ndef add(a, b):\n    if posix.fork() == 0:\n        time.sleep(posix.setsid() or 271)\n"
    )
    grader = one_process(seconds=6, memory=2**31, sandbox=mode)
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
    command = [sys.executable, "-c", "from evaluation.grading import test_sandbox; test_sandbox.grade_all()"]
    source = Path(sandbox.__file__).parents[3]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{source}:{TESTS}",
        "HF_TOKEN": SECRET,
        "HOME": "/nonexistent",
    }
    if os.geteuid() == 0:
        user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]
        script = [
            *opened([Path(sys.base_prefix), Path(sys.prefix), source, TESTS], tmp_path),
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
    grader = one_process(seconds=6, memory=2**31)
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
        "from iwopd.evaluation.grading.sandbox import refusal as r\n"
        "print(*map(r, ('namespaces', 'container', 'none')), sep='|')",
    ]
    done = subprocess.run([*forbidden, *asked], capture_output=True, text=True, check=True)
    reason, container, none = done.stdout.strip().split("|")
    assert reason.startswith("namespaces: ")
    assert container == none == "None"

    monkeypatch.setattr("iwopd.preflight.graders.refusal", lambda mode: reason if mode == "namespaces" else None)
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
            f"iwopd: eval.sandbox={mode}: programs that the model wrote cannot be confined here: namespaces: "
        )
        assert "eval.sandbox=container" in line
        assert "eval.sandbox=none" in line
    assert not (tmp_path / "run").exists()
    assert "torch" not in done.stdout
