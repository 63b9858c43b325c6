"""Evaluation, diagnosis, studies."""

from dataclasses import dataclass, field
from typing import Any

from iwopd.config.models import SourceConfig
from iwopd.setting import setting

GRADERS = ("exact", "math", "code")


@dataclass(kw_only=True, slots=True)
class BenchmarkConfig(SourceConfig):
    """Problems with answers to be evaluated on."""

    split: str = setting("test", "split of a hub dataset or of toy://")
    answer_column: str | None = setting("answer", "column with the reference answer")
    grader: str = setting(
        "exact",
        "how an answer is compared: as text, as mathematics in the last \\boxed{}, or by running it",
        choices=GRADERS,
    )
    answer_pattern: str | None = setting(None, "regular expression whose first group is the answer; null: all the text")
    reference_pattern: str | None = setting(
        None, "regular expression whose first group is the reference within the answer column; null: all of it"
    )


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """How accuracy is measured."""

    every: int = setting(10, "steps between evaluations; 0 for none but the first and last", low=0)
    k: int = setting(1, "mean@k and pass@k", low=1)
    n: int | None = setting(None, "samples per problem, at least k; null for k", low=1)
    temperature: float = setting(1.0, "sampling temperature; 0 is greedy", low=0)
    top_p: float = setting(1.0, "nucleus", above=0, high=1)
    top_k: int = setting(0, "the most likely tokens only; 0 for all", low=0)
    max_tokens: int | None = setting(None, "longest response, tokens; null for rollout.max_tokens", low=1)
    chunk: int = setting(256, "samples that `iwopd eval` draws at one time, then writes and need not draw again", low=1)
    grading_timeout_s: float = setting(
        5.0, "seconds to find an answer, or to compare two mathematical ones; one that takes longer is wrong", above=0
    )
    allow_code_execution: bool = setting(False, "let grader=code run what the model wrote, confined by eval.sandbox")
    sandbox: str = setting(
        "auto",
        "what confines programs that the model wrote. namespaces: no network, none of your files or environment; auto: "
        "the same, and refused where the kernel forbids it; container: you vouch that all of this runs in a container, "
        "and only limits and a clean environment are added; none: those limits alone",
        choices=("auto", "namespaces", "container", "none"),
    )
    code_timeout_s: float = setting(
        60.0, "seconds for all tests of one program; one that takes longer is wrong", above=0
    )
    code_memory_gib: float = setting(4.0, "address space of a program under test, GiB", above=0)
    greedy: bool = setting(True, "also the accuracy of one greedy answer per problem")
    benchmarks: dict[str, BenchmarkConfig] = field(default_factory=dict[str, BenchmarkConfig])
    model: str | None = setting(
        None, "model that `iwopd eval` measures: a folder, hub name or toy://VARIANT/ROLE", path=True
    )


@dataclass(kw_only=True, slots=True)
class DiagnoseConfig:
    """What `iwopd diagnose` measures; its prompts are those of a benchmark, which has answers and a grader."""

    run: str | None = setting(
        None, "training run whose kept students are diagnosed; null for student.path alone", path=True
    )
    benchmark: str | None = setting(None, "which of eval.benchmarks gives the prompts; null for the first")
    prompts: int = setting(128, "prompts answered, rollout.n times each", low=1)
    continuations: int = setting(
        128, "of these, how many are continued from their answers' prefixes; 0 for none", low=0
    )
    top_k: int = setting(10, "most likely tokens whose overlap is measured", low=1)
    examples: int = setting(4, "example trajectories of the prefix log-ratio", low=0)


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    """What `iwopd report` shows."""

    runs: list[str] = setting([], "folders of training runs, on one page; `iwopd report A B` sets it")
    output: str | None = setting(
        None,
        "file to write; null for report.html in the run's folder, or where the command is typed for several runs",
        path=True,
    )


@dataclass(kw_only=True, slots=True)
class AblateConfig:
    """What `iwopd ablate` compares."""

    arms: list[Any] | None = setting(
        None, "weightings, or {name: …, KEY: VALUE} of any settings; null: uniform, first30, last30, iw"
    )
    seeds: Any = setting(8, "seeds of every arm: a list, or their number, counted from 1; 6 at least for a verdict")
    students: list[str] | None = setting(
        None,
        "students (each as student.path) that the seeds train in turn: the first seed the first of them, all arms of a "
        "seed the same; null: student.path for every seed",
        path=True,
    )
    baseline: str = setting("uniform", "the arm that the others are compared with")
    match: str = setting("steps", "what all arms have equal: steps, or tokens generated", choices=("steps", "tokens"))
    early: int = setting(10, "step of the early figure: the last evaluation up to it counts", low=1)
    workers: int | None = setting(None, "runs at one time; null for one per CPU core, or one on a GPU", low=1)
