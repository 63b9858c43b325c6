"""Is the memory that `iwopd doctor` estimates the memory that a step takes?

    python scripts/bench_estimate.py                 # every case, some minutes on one CPU core; Linux
    python scripts/bench_estimate.py --cases moe     # some of them
    python scripts/bench_estimate.py --random 6      # random shapes instead; --seed changes them

Each case is measured in processes of its own, with real models: rollout, score and update, at the second optimiser
step, when Adam's state exists. Two measures, both with weights and state:

- tensors: the peak of what PyTorch's allocator handed out, by torch.profiler; what a GPU's memory counter says.
- resident: the peak of resident memory (the kernel's VmHWM) above what the process held before the models were made,
  set up as the program does (`iwopd.machine.runtime`), and what was freed given back before each stage.

The estimate knows the config and the models' config.json alone. Prints a table to stderr and one JSON document to
stdout; exit status 1 where an estimate is off by more than 15 % of either.
"""

import argparse
import gc
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from torch.profiler import profile
from transformers import AutoConfig, AutoModelForCausalLM

from iwopd import assembly
from iwopd.config import (
    Config,
    DataConfig,
    HfRolloutConfig,
    HfScoringConfig,
    OptimConfig,
    StudentConfig,
    TeacherConfig,
)
from iwopd.doctor.lengths import lengths
from iwopd.doctor.machine import Machine
from iwopd.doctor.memory import COMPILED, Place
from iwopd.doctor.models import student_model, teacher_model
from iwopd.doctor.plan import Plan
from iwopd.machine import host, runtime
from iwopd.models.language_model import LanguageModel
from iwopd.models.student import Student
from iwopd.rollout.hf import HfEngine
from iwopd.scoring.hf import HfTeacher
from iwopd.training.objective import Objective
from iwopd.training.score import score
from iwopd.training.update import update
from iwopd.types import Prompt, Rollout
from iwopd.weighting.uniform import Uniform

LIMIT = 0.15
RATIOS = ("ratio", "resident_ratio")
STAGES = ("rollout", "score", "update")


@dataclass(frozen=True)
class Case:
    """A student and a teacher of one architecture, and a step's sizes in tokens."""

    kind: str = "qwen3"
    width: int = 512
    layers: int = 6
    vocabulary: int = 32_000
    heads: int = 8
    kv_heads: int = 4
    mlp: int = 1536
    tied: bool = True
    prompts: int = 4
    prompt: int = 300
    response: int = 24
    micro: int = 2048
    checkpointing: bool = False
    autocast: bool = False
    dtype: str = "float32"
    more: dict[str, Any] = field(default_factory=dict)

    def model(self) -> Any:
        """transformers' configuration."""
        shape = {
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": self.tied,
            "pad_token_id": None,
        }
        if self.kind in ("qwen3", "qwen3_moe"):
            shape["head_dim"] = self.width // self.heads
        return AutoConfig.for_model(self.kind, **(shape | self.more))

    def config(self) -> Config:
        """A run's."""
        return Config(
            student=StudentConfig(path="student", dtype=self.dtype, gradient_checkpointing=self.checkpointing),
            teacher=TeacherConfig(path="teacher", dtype="float32"),
            data=DataConfig(path="data", batch_size=self.prompts, max_prompt_tokens=self.prompt),
            rollout=HfRolloutConfig(max_tokens=self.response, batch_size=self.prompts),
            scoring=HfScoringConfig(),
            weighting=Uniform(),
            optim=OptimConfig(micro_batch_tokens=self.micro, autocast=self.autocast),
        )


EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 384}
CASES = {
    "qwen3": Case(),
    "wide": Case(width=1024, mlp=3072, layers=3, prompts=3, micro=500),
    "vocabulary": Case(width=256, mlp=768, layers=2, vocabulary=151_936),
    "checkpointing": Case(layers=10, checkpointing=True),
    "autocast": Case(width=256, mlp=768, layers=4, prompts=3, autocast=True),
    "bfloat16": Case(width=256, mlp=768, layers=4, prompts=3, dtype="bfloat16"),
    "llama": Case(kind="llama", width=768, mlp=2048, tied=False),
    "gemma": Case(kind="gemma2", more={"head_dim": 64}),
    "neox": Case(kind="gpt_neox", mlp=2048, tied=False),
    "moe": Case(kind="qwen3_moe", layers=4, more=EXPERTS),
}


def random_case(drawn: random.Random) -> Case:
    """One that nobody chose."""
    kind = drawn.choice(["qwen3", "llama", "qwen2", "gemma2", "gpt_neox", "qwen3_moe"])
    heads = drawn.choice([4, 8])
    width = heads * drawn.choice([32, 64, 96])
    prompts, prompt, response = drawn.randint(2, 8), drawn.randint(64, 400), drawn.randint(8, 32)
    more = {"qwen3_moe": EXPERTS, "gemma2": {"head_dim": width // heads}}.get(kind, {})
    return Case(
        kind=kind,
        width=width,
        layers=drawn.randint(3, 8),
        vocabulary=drawn.choice([8_000, 32_000, 64_000, 151_936]),
        heads=heads,
        kv_heads=heads if kind == "gpt_neox" else drawn.choice([heads, heads // 2]),
        mlp=width * drawn.choice([2, 3, 4]),
        tied=drawn.random() < 0.5,
        prompts=prompts,
        prompt=prompt,
        response=response,
        micro=drawn.choice([prompt + response, 4 * (prompt + response)]),
        checkpointing=drawn.random() < 0.4,
        more=more,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--random", type=int, help="so many random shapes instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # measure one case in this process
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(Case(**json.loads(options.one)), tensors=bool(os.environ.get("TENSORS")))))
        return 0
    drawn = random.Random(options.seed)
    cases = {name: CASES[name] for name in options.cases}
    if options.random:
        cases = {f"random {number + 1}": random_case(drawn) for number in range(options.random)}
    found: dict[str, Any] = {}
    for name, case in cases.items():
        found[name] = compared(case)
        print(table({name: found[name]}), file=sys.stderr, flush=True)
    ratios = [row[name] for entry in found.values() for row in entry["stages"].values() for name in RATIOS]
    worst = max(abs(ratio - 1) for ratio in ratios)
    print(json.dumps({"torch": torch.__version__, "limit": LIMIT, "worst": round(worst, 3), "cases": found}, indent=2))
    return 0 if worst <= LIMIT else 1


def compared(case: Case) -> dict[str, Any]:
    """Estimate and both measures of each stage, MiB."""
    guessed = estimate(case)

    def run(**environment: str) -> dict[str, float]:
        command = [sys.executable, __file__, "--one", json.dumps(asdict(case))]
        env = {**os.environ, **runtime.CACHES, **environment}
        return json.loads(subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])

    tensors, resident = run(TENSORS="1"), run()
    stages = {
        stage: {
            "estimate": guessed[stage].total,
            "tensors": tensors[stage],
            "ratio": round(guessed[stage].tensors / tensors[stage], 3),
            "resident": resident[stage],
            "resident_ratio": round(guessed[stage].total / resident[stage], 3),
        }
        for stage in STAGES
    }
    return {"case": asdict(case), "stages": stages}


def table(found: dict[str, Any]) -> str:
    lines = [f"{'MiB':16}{'stage':>9}{'estimate':>10}{'tensors':>9}{'ratio':>7}{'resident':>10}{'ratio':>7}"]
    for name, entry in found.items():
        for stage, row in entry["stages"].items():
            lines.append(
                f"{name:16}{stage:>9}{row['estimate']:10.0f}{row['tensors']:9.0f}{row['ratio']:7.2f}"
                f"{row['resident']:10.0f}{row['resident_ratio']:7.2f}"
            )
    return "\n".join(lines)


class Estimate(NamedTuple):
    """MiB: all, and that of tensors alone."""

    total: float
    tensors: float


def estimate(case: Case) -> dict[str, Estimate]:
    """Of each stage, from the config alone."""
    config, model = case.config(), case.model()
    plan = Plan(
        config=config,
        machine=Machine("cpu", "", 0, 0, 0, 0, None),
        student=student_model(config, model, "cpu"),
        teacher=teacher_model("teacher", config.teacher, model, "cpu"),
        lengths=lengths(config),
        window=config.weighting.bounds,
        needs_batch=False,
    )
    return {place.stage: Estimate(mib(place.total), mib(in_tensors(place))) for place in plan.places()}


def in_tensors(place: Place) -> float:
    """Bytes, without what a library keeps."""
    return sum(term.bytes for term in place.terms if term.what != COMPILED)


def measure(case: Case, *, tensors: bool) -> dict[str, float]:
    """MiB at the peak of each stage of the second step, in this process."""
    host.map_blocks_above(runtime.MMAP_BYTES)
    _Step(replace(case, width=64, mlp=64, layers=1, vocabulary=500, heads=2, kv_heads=2)).run(_plain)  # warm-up
    before = memory("VmRSS")
    step = _Step(case)
    step.run(_plain)
    held = step.held()

    def by_allocator(work: Callable[[], None]) -> float:
        with profile(profile_memory=True) as profiler:
            work()
        events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
        now = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            now += event.nbytes()
            peak = max(peak, now)
        return mib(held + peak)

    def by_kernel(work: Callable[[], None]) -> float:
        gc.collect()
        host.release_freed_memory()
        Path("/proc/self/clear_refs").write_text("5")
        work()
        return mib(memory("VmHWM") - before)

    return step.run(by_allocator if tensors else by_kernel)


def _plain(work: Callable[[], None]) -> float:
    work()
    return 0.0


class _Step:
    """Student, teacher and engine of a case, and one step of them."""

    def __init__(self, case: Case):
        config, model = case.config(), case.model()
        torch.manual_seed(0)
        student = AutoModelForCausalLM.from_config(model, dtype=getattr(torch, case.dtype), attn_implementation="sdpa")
        teacher = AutoModelForCausalLM.from_config(model, dtype=torch.float32, attn_implementation="sdpa")
        if case.checkpointing:
            student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        lm = LanguageModel(student, autocast=case.autocast)
        self.case = case
        self.student = Student(lm, OptimConfig(lr=1e-5), case.micro)
        self.teacher = HfTeacher(LanguageModel(teacher), torch.device("cpu"))
        self.engine = HfEngine(lm, [], case.prompts)
        self.objective = Objective.of(config)
        self.sampling = assembly.sampling(config.rollout)

    def run(self, stage: Callable[[Callable[[], None]], float]) -> dict[str, float]:
        """Each stage within `stage`."""
        case, found = self.case, dict[str, Any]()
        drawn = random.Random(0)
        prompts = [
            # One is shorter, so that sampling pads.
            Prompt(f"p{number}", [drawn.randrange(case.vocabulary) for _ in range(case.prompt - (number == 0))], "")
            for number in range(case.prompts)
        ]

        def rollout() -> None:
            found["rollouts"] = self.engine.generate(prompts, self.sampling, seed=0, stream=0)

        def scoring() -> None:
            rollouts: list[Rollout] = found["rollouts"]
            found["scored"] = score(self.teacher, rollouts, self.objective.weighting.window(0.0))

        def training() -> None:
            update(self.student, found["scored"], self.objective, seeds=range(case.prompts))

        works = {"rollout": rollout, "score": scoring, "update": training}
        return {name: stage(work) for name, work in works.items()}

    def held(self) -> int:
        """Bytes of weights and of the optimiser's state."""
        tensors = [*self.student.model.parameters(), *self.teacher.model.model.parameters()]
        state = [value for entry in self.student.optimizer.state.values() for value in entry.values()]
        return sum(tensor.nbytes for tensor in [*tensors, *state])


def memory(name: str) -> int:
    """Bytes: VmRSS is resident now, VmHWM was at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def mib(count: float) -> float:
    return round(count / 2**20, 1)


if __name__ == "__main__":
    sys.exit(main())
