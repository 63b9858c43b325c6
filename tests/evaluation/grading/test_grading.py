"""Verdicts on answers: a table of them, what must not hang or harm, and programs that are run."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.paths import DATA
from support.programs import HUB, MBPP, NATIVE, prompt_of

from iwopd.evaluation.grading import CodeGrader, ExactGrader, MathGrader, Verdict
from iwopd.evaluation.grading.boxed import last_boxed
from iwopd.evaluation.grading.comparing import as_number, compare
from iwopd.evaluation.grading.programs import code_block
from iwopd.types import Prompt

pytestmark = pytest.mark.process

TABLE = DATA / "grading.tsv"


def table() -> list[tuple[str, str, str, bool, str]]:
    """kind, answer, reference, right, reason."""
    rows = [line.split("\t") for line in TABLE.read_text().splitlines() if line and not line.startswith("#")]
    assert all(len(row) == 5 and row[3] in ("right", "wrong") for row in rows)
    return [
        (kind, answer.replace("⏎", "\n"), reference, said == "right", why)
        for kind, answer, reference, said, why in rows
    ]


def problem(answer: str) -> Prompt:
    return Prompt("p", [1], "", answer=answer)


def test_the_table_gives_the_verdicts_of_a_mathematician() -> None:
    rows = [row for row in table() if row[0] != "slow"]
    assert len(rows) >= 400
    asked = [
        (answer if kind == "response" else f"So \\boxed{{{answer}}}.", problem(ref)) for kind, answer, ref, *_ in rows
    ]
    grader = MathGrader(seconds=20)
    try:
        verdicts = grader(asked)
    finally:
        grader.close()
    wrong = [(*row, verdict) for row, verdict in zip(rows, verdicts, strict=True) if verdict.correct is not row[3]]
    assert wrong == []
    assert not any(verdict.timed_out for verdict in verdicts)


def test_catastrophes_are_given_up_and_wrong_and_the_next_answer_is_graded() -> None:
    rows = [row for row in table() if row[0] == "slow"]
    grader = MathGrader(seconds=0.5)
    try:
        grader([(r"\boxed{2^{3}}", problem("8"))])  # starts a process
        verdicts = grader([(f"\\boxed{{{answer}}}", problem(reference)) for _, answer, reference, *_ in rows])
        assert grader([(r"\boxed{3^{2}}", problem("9"))]) == [Verdict(True, "3^{2}")]
    finally:
        grader.close()
    assert not any(verdict.correct for verdict in verdicts)
    assert sum(verdict.timed_out for verdict in verdicts) >= 2


@pytest.mark.unit
@pytest.mark.parametrize(
    "answer",
    [
        "1" * 10_000,
        r"\frac{1}{" * 300 + "2" + "}" * 300,
        "(" * 5000,
        "x_a_a_a_a_a_a_a_a_a_a_a_a_a_a_a_a_a_a_a_a_a_a_a_a_a_a_a_a_a_a_a_a=!",
        "a " * 5000,
        "," * 10_000,
        "-" * 3000 + "1",
        "\\text{" * 500,
        "1" + "{,}000" * 500,
        "*" * 3900,
    ],
    ids=lambda answer: answer[:12],
)
def test_long_and_deep_answers_are_wrong_at_once_and_never_worked_out(answer: str) -> None:
    assert compare(answer, "7", lambda answer, reference: len(answer) > 100) is False
    assert last_boxed(f"\\boxed{{{answer}") is None


@pytest.mark.unit
def test_a_long_answer_that_is_the_reference_is_right() -> None:
    assert compare(" " + "7" * 9000, "7" * 9000, lambda *expressions: False)
    assert not compare("7" * 9000 + "8", "7" * 9000, lambda *expressions: True)


@pytest.mark.unit
def test_numbers_are_exact() -> None:
    assert as_number("0.1") == as_number(r"\frac{1}{10}") == as_number("1/10")
    assert as_number("1e400") is not None
    assert as_number("1e999999999") is None
    assert as_number(r"\frac{1}{0}") is None


def test_equal_writing_needs_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    grader = MathGrader()
    asked = [(r"\boxed{016}", "16"), (r"\boxed{17}", "16"), (r"\boxed{\dfrac12}", "0.5"), ("16", "16")]
    verdicts = grader([(text, problem(answer)) for text, answer in asked])
    assert [verdict.correct for verdict in verdicts] == [True, False, True, False]
    assert [verdict.answer for verdict in verdicts] == ["016", "17", r"\dfrac12", None]


def test_many_threads_may_grade_and_no_process_is_left() -> None:
    grader, found = MathGrader(), list[bool]()

    def work(number: int) -> None:
        found.append(grader([(rf"\boxed{{{number}^{{2}}}}", problem(str(number**2)))])[0].correct)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4
    workers = children("iwopd.evaluation.grading.worker")
    assert workers
    grader.close()
    assert children("iwopd.evaluation.grading.worker") == []


def children(name: str) -> list[int]:
    """Processes of this one that run a module."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == os.getpid() and name in (entry / "cmdline").read_text():
                    found.append(int(entry.name))
            except OSError:  # it has ended
                continue
    return found


def test_the_processes_know_nothing_of_torch() -> None:
    imports = "import sys, iwopd.evaluation.grading.worker, iwopd.evaluation.grading.equality"
    code = f"{imports}; print({{'torch', 'vllm', 'transformers'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_references_that_mean_nothing_are_found() -> None:
    grader = MathGrader()
    references = ["5", r"\frac{x}{2}", r"\text{yes}", "x=2", "(1,2)", r"\frac{", "18", r"\boxed{7}"]
    try:
        assert grader.unreadable(references) == [5]
    finally:
        grader.close()


@pytest.mark.unit
def test_a_pattern_that_takes_forever_is_given_up_and_wrong() -> None:
    slow, quick = "a" * 5000 + "!", "aab"
    found = ExactGrader("(a+)+b", seconds=0.2)([(slow, problem("aa")), (quick, problem("aa"))])
    assert [(verdict.correct, verdict.timed_out) for verdict in found] == [(False, True), (True, False)]


def test_exact_grading_tells_the_answer() -> None:
    assert ExactGrader(r"#(\d+)")([("a#1#2", problem("2")), ("x", problem("2"))]) == [
        Verdict(True, "2"),
        Verdict(False),
    ]


# ---------------------------------------------------------------------------------------------- programs

PROGRAMS = {
    "right": ("def add(a, b):\n    return a + b", True),
    "wrong": ("def add(a, b):\n    return a - b", False),
    "right in the first test alone": ("def add(a, b):\n    return 3", False),
    "memory": ("def add(a, b):\n    kept = [0] * 10**10\n    return a + b", False),
    "leaves": ("import sys\ndef add(a, b):\n    sys.exit(0)\n    return 3", False),
    "leaves hard": ("import os\ndef add(a, b):\n    os._exit(0)\n    return 3", False),
    "no such function": ("def sub(a, b):\n    return a - b", False),
    "no Python": ("def add(a, b:\n  return", False),
}


@pytest.fixture(scope="module")
def run_code():
    grader = CodeGrader(seconds=4, memory=2**31)
    yield lambda row, code: grader([(f"Here:\n```python\n{code}\n```\n", prompt_of(row))])[0]
    grader.close()


@pytest.mark.parametrize("row", [NATIVE, HUB, MBPP], ids=["evalplus", "hub", "mbpp"])
@pytest.mark.parametrize(("code", "right"), PROGRAMS.values(), ids=PROGRAMS.keys())
def test_a_program_is_right_when_all_tests_pass(run_code, row: dict, code: str, right: bool) -> None:
    assert run_code(row, code).correct is right


def test_an_endless_program_is_given_up_and_wrong() -> None:
    answer = "```python\ndef add(a, b):\n    while True:\n        pass\n    return 1\n```\n"
    grader = CodeGrader(seconds=1, memory=2**31)
    try:
        verdicts = grader([(answer, prompt_of(row)) for row in (NATIVE, HUB, MBPP)])
    finally:
        grader.close()
    assert [verdict.correct for verdict in verdicts] == [False] * 3


def test_what_a_program_writes_or_starts_does_not_stay(
    run_code, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = """\
import posix, time
def add(a, b):
    posix.close(posix.open("left", posix.O_CREAT | posix.O_WRONLY))
    for _ in range(3):
        if posix.fork() == 0:
            posix.setsid()
            time.sleep(271)
            posix._exit(0)
    return a - b
"""
    assert not run_code(HUB, code).correct
    assert list(tmp_path.iterdir()) == []
    (server,) = children("iwopd.evaluation.grading.run_code")
    (starter,) = Path(f"/proc/{server}/task/{server}/children").read_text().split()  # it stays, to start the next
    assert Path(f"/proc/{starter}/task/{starter}/children").read_text().split() == []


@pytest.mark.unit
def test_a_prompt_for_a_program_names_the_function() -> None:
    asked = prompt_of(MBPP).row["prompt"]
    assert "assert add(1, 2) == 3" in asked
    assert asked.startswith("Please provide a self-contained Python script")
    assert prompt_of(MBPP).row["problem"]["entry_point"] == "add"
    assert "def add" in prompt_of(NATIVE).row["prompt"]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("```python\na = 1\n```", "a = 1"),
        ("```\na = 1\n```\nand\n```python\ndef f(): pass\n```\nso\n```python\nf()\n```", "def f(): pass"),
        ("```python\na = 1\n```\n```python\nb = 1\n```", "b = 1"),
        ("```python\ndef f(): pa", "def f(): pa"),
        ("def f(): pass", "def f(): pass"),
    ],
)
def test_the_program_in_a_response(response: str, code: str) -> None:
    assert code_block(response, "f") == code
