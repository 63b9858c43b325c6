"""The two sides, each in a process of its own: whole steps, and scoring and update alone."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from gpu_parts.common import WEIGHTING, make_rollouts, synchronize
from gpu_parts.trl import make_trainer, score_and_update

from iwopd.config import OptimConfig
from iwopd.models.language_model import LanguageModel, load_pretrained
from iwopd.models.student import Student
from iwopd.scoring.hf import HfTeacher
from iwopd.training.objective import Objective
from iwopd.training.score import score
from iwopd.training.update import update
from vs_trl.sizes import Pair

LR = 2e-4
# Seconds of one step: "seconds" by the wall, "cpu" of this process, "rollout", "score" and "update"; and its "tokens".
Step = dict[str, float]


def iwopd_steps(pair: Pair, steps: int, device: str, overrides: list[str]) -> list[Step]:
    """Steps of `iwopd train`, with its checks of the engine."""
    from iwopd.launch import launch
    from iwopd.training.loop import Loop

    clocks, work, plain = list[Step](), pair.size.work, Loop.step

    @wraps(plain)
    def timed_step(loop: Loop) -> None:
        clocks.append(_clocked(lambda: plain(loop), torch.device(device)))

    Loop.step = timed_step  # pyright: ignore[reportAttributeAccessIssue]
    with tempfile.TemporaryDirectory() as room:
        given = [f"student.path={pair.student}", f"teacher.path={pair.teacher}", f"run.device={device}"]
        given += [f"data.batch_size={work.sequences}", f"rollout.max_tokens={work.response}", f"optim.lr={LR}"]
        given += ["eval.every=0", "eval.greedy=false", "run.samples=0", "run.save_every=0", f"run.steps={steps}"]
        if pair.problems is None:
            given.append("eval.benchmarks.toy.limit=2")
        else:
            given += ["student=hf", "teacher=hf", "data=file", f"data.path={pair.problems}", "benchmark=[file]"]
            given += [f"eval.benchmarks.file.path={pair.problems}", "eval.benchmarks.file.limit=1", "eval.k=1"]
        if pair.size.bfloat16:
            given += ["student.dtype=float32", "optim.autocast=true", "teacher.dtype=bfloat16"]
            given += ["optim.micro_batch_tokens=1024"] if device == "cpu" else []
        launch("train", "iwopd.commands.train", [*given, f"run.dir={room}/run", *overrides])
        rows = [json.loads(line) for line in (Path(room) / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "train/loss" in row]
    stages = ("rollout", "score", "update", "sync", "parity")
    return [
        {**clock, "tokens": row["tokens/generated"], **{name: row.get(f"time/{name}_s", 0.0) for name in stages}}
        for clock, row in zip(clocks, rows, strict=True)
    ]


def trl_steps(pair: Pair, steps: int, device: str, options: dict[str, Any]) -> list[Step]:
    """Steps of TRL's trainer; the teacher's forward pass is its scoring, and the update what is not in another stage.

    Args:
        options: more of IWOPDConfig.
    """
    from transformers import TrainerCallback

    clocks, begun = list[Step](), list[tuple[float, float]]()
    spent: Step = {"rollout": 0.0, "score": 0.0, "tokens": 0.0}

    class Clock(TrainerCallback):
        def on_step_begin(self, *arguments: object, **more: object) -> None:
            spent.update(dict.fromkeys(spent, 0.0))
            begun.append((time.perf_counter(), time.process_time()))

        def on_step_end(self, *arguments: object, **more: object) -> None:
            synchronize(torch.device(device))
            wall, cpu = begun[-1]
            seconds = time.perf_counter() - wall
            rest = seconds - spent["rollout"] - spent["score"]
            clocks.append({"seconds": seconds, "cpu": time.process_time() - cpu, "update": rest, **spent})

    work = pair.size.work
    # TRL divides the loss by the tokens of the dataset's own answers, which it does not train on: without one, by zero.
    turns = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["answer"]}]
        for row in pair.rows(work.sequences * steps)
    ]
    with tempfile.TemporaryDirectory() as room:
        trainer = make_trainer(
            *_models(pair, device),
            turns,
            room,
            tokenizer=pair.folders["student"],
            per_device_train_batch_size=work.sequences,
            max_steps=steps,
            max_completion_length=work.response,
            max_length=work.prompt + work.response,
            learning_rate=LR,
            bf16=pair.size.bfloat16,
            use_cpu=device == "cpu",
            **options,
        )
        trainer.add_callback(Clock())
        _time(trainer, "_generate_student_completions", spent, "rollout", torch.device(device))
        _time(trainer, "_get_teacher_logits", spent, "score", torch.device(device))
        _count_tokens(trainer, spent)
        trainer.train()
    return clocks


def iwopd_alone(pair: Pair, repeats: int, device: str) -> list[Step]:
    """Scoring and update of given rollouts."""
    place, work = torch.device(device), pair.size.work
    dtype, folders = "bfloat16" if pair.size.bfloat16 else "float32", pair.folders
    learner = load_pretrained(folders["student"], key="student.path", dtype="float32", device=place)
    scorer = load_pretrained(folders["teacher"], key="teacher.path", dtype=dtype, device=place)
    teacher = HfTeacher(LanguageModel(scorer, name="teacher"), place)
    student = Student(
        LanguageModel(learner, autocast=pair.size.bfloat16, name="student"),
        OptimConfig(lr=LR),
        1024 if device == "cpu" else 32768,
    )
    rollouts = make_rollouts(work, learner.config.vocab_size)

    def run() -> None:
        scored = score(teacher, rollouts, WEIGHTING.window(0.0))
        update(student, scored, Objective(WEIGHTING), seeds=range(work.sequences))

    return [{**_clocked(run, place), "tokens": work.tokens} for _ in range(repeats)]


def trl_alone(pair: Pair, repeats: int, device: str) -> list[Step]:
    """The same with TRL's loss and optimiser, in one batch."""
    place, work = torch.device(device), pair.size.work
    student, teacher = _models(pair, device)
    run = score_and_update(
        student, teacher, place, work, work.sequences, pair.folders["student"], bf16=pair.size.bfloat16
    )
    return [{**_clocked(run, place), "tokens": work.tokens} for _ in range(repeats)]


def _models(pair: Pair, device: str) -> tuple[Any, Any]:
    """Student and teacher as TRL's documentation has them: weights that are trained in float32."""
    from transformers import AutoModelForCausalLM

    dtypes = {"student": torch.float32, "teacher": torch.bfloat16 if pair.size.bfloat16 else torch.float32}
    found = [AutoModelForCausalLM.from_pretrained(pair.folders[role], dtype=dtype) for role, dtype in dtypes.items()]
    return found[0].to(device), found[1].to(device)


def _clocked(run: Callable[[], Any], device: torch.device) -> Step:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    synchronize(device)
    return {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def _time(owner: Any, name: str, spent: Step, stage: str, device: torch.device) -> None:
    plain = getattr(owner, name)

    @wraps(plain)
    def timed(*arguments: Any, **more: Any) -> Any:
        with _adds(spent, stage, device):
            return plain(*arguments, **more)

    setattr(owner, name, timed)


@contextmanager
def _adds(spent: Step, stage: str, device: torch.device) -> Iterator[None]:
    synchronize(device)
    start = time.perf_counter()
    yield
    synchronize(device)
    spent[stage] += time.perf_counter() - start


def _count_tokens(trainer: Any, spent: Step) -> None:
    plain = trainer.compute_loss

    @wraps(plain)
    def counted(model: Any, inputs: Any, *arguments: Any, **more: Any) -> Any:
        spent["tokens"] += int((inputs["labels"] != -100).sum())
        return plain(model, inputs, *arguments, **more)

    trainer.compute_loss = counted
