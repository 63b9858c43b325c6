"""The toy task: walk a hidden chain back to its root, then forward again while collecting digits.

    prompt    fh1ae6ec7c.7ha3?h:            edges "child parent digit", shuffled; the query after "?"
    response  haec|c.7:7;ec7:77;ae6:776;ha3:7763#7763
              plan from the query to the root | execution from the root to the query # all digits

A response is right when it ends in "#" and the true digits; chance is about 1e-4.
"""

import random
import string
from dataclasses import dataclass

ROOT = "."
ANSWER_PATTERN = r"#([0-9]+)\Z"


@dataclass(frozen=True)
class Task:
    """Size of the problems: `nodes` letters of the first `letters` form the chain; depth is that of the query."""

    nodes: int = 8
    letters: int = 12
    min_depth: int = 4
    max_depth: int = 6


@dataclass(frozen=True)
class Noise:
    """How a weak student errs: the chance of a wrong hop in the plan, and of a wrong digit in the execution."""

    plan: float = 0.0
    execution: float = 0.0


@dataclass(frozen=True)
class Problem:
    """One chain, root first, with the digit of each node, and the depth of the query."""

    chain: str
    digits: str
    depth: int
    prompt: str

    @property
    def answer(self) -> str:
        return self.digits[: self.depth]


def make_problem(task: Task, rng: random.Random) -> Problem:
    """A random problem."""
    chain = "".join(rng.sample(string.ascii_lowercase[: task.letters], task.nodes))
    digits = "".join(rng.choices(string.digits, k=task.nodes))
    depth = rng.randint(task.min_depth, task.max_depth)
    edges = [child + parent + digit for child, parent, digit in zip(chain, ROOT + chain[:-1], digits, strict=True)]
    rng.shuffle(edges)
    return Problem(chain, digits, depth, "".join(edges) + f"?{chain[depth - 1]}:")


def write_response(problem: Problem, task: Task, rng: random.Random, noise: Noise) -> str:
    """The response to a problem, with a student's errors; exactly the right one where there is no noise."""
    parent = dict(zip(problem.chain, ROOT + problem.chain[:-1], strict=True))
    digit = dict(zip(problem.chain, problem.digits, strict=True))

    plan = problem.chain[problem.depth - 1]
    while parent[plan[-1]] != ROOT and len(plan) < task.max_depth + 2:
        step = parent[plan[-1]]
        if rng.random() < noise.plan:
            step = rng.choice([node for node in problem.chain if node != plan[-1]])
        plan += step

    lines, collected = [], ""
    for node in reversed(plan):
        # A wrong digit is written into the collection; the edges themselves are copied from the prompt.
        wrong = rng.random() < noise.execution
        collected += rng.choice([d for d in string.digits if d != digit[node]]) if wrong else digit[node]
        lines.append(f"{node}{parent[node]}{digit[node]}:{collected}")
    return f"{plan}|{';'.join(lines)}#{collected}"


def problems(task: Task, split: str, count: int) -> list[Problem]:
    """The first `count` problems of a split, always the same; train problems never repeat a test prompt."""
    held_out: set[str] = set()
    if split != "test":
        held_out = {problem.prompt for problem in problems(task, "test", TEST_PROBLEMS)}
    rng = random.Random(f"iwopd toy {split}")
    made: list[Problem] = []
    while len(made) < count:
        problem = make_problem(task, rng)
        if problem.prompt not in held_out:
            made.append(problem)
    return made


TRAIN_PROBLEMS = 16384
TEST_PROBLEMS = 256
