"""A training run from its config: everything is loaded and checked, cheapest first, and then the loop gets it."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from iwopd.assembly.engines import base, engine, teachers
from iwopd.assembly.evaluation import benchmarks, grader
from iwopd.assembly.inputs import check_scorer_tokenizer, longest_taught, prompt_stream, student_tokenizer
from iwopd.assembly.model_configs import check_context, check_top_k, check_vocabulary, model_config, stop_ids
from iwopd.assembly.models import device, student
from iwopd.assembly.parallel import opened_world as opened_world
from iwopd.assembly.run_inputs import keep_inputs, training_inputs
from iwopd.assembly.settings import eval_sampling, gap_watch, parity, sampling
from iwopd.assembly.vllm import Served, uses_vllm
from iwopd.config import Config, ScorerConfig, StudentConfig, describe_objective, graded_as
from iwopd.config.checks import warnings
from iwopd.config.models import SELF
from iwopd.config.teachers import teacher_sections
from iwopd.data import Prompts
from iwopd.evaluation.evaluate import Benchmark
from iwopd.machine import runtime
from iwopd.machine.memory_watch import MemoryWatch
from iwopd.models.student import Student
from iwopd.parallel import world
from iwopd.preflight.checks import Checked
from iwopd.preflight.paths import model_folders, model_paths, scorer_sections
from iwopd.preflight.problems import teacher_templates
from iwopd.rollout.base import Engine
from iwopd.runs.about import version_changes
from iwopd.runs.console import Display
from iwopd.runs.folder import RunFolder
from iwopd.runs.interrupts import Interrupts
from iwopd.runs.tracking import NoTracker, Tracker
from iwopd.scoring.base import Teacher
from iwopd.tracking import chosen
from iwopd.training.objective import Objective, try_weighting
from iwopd.training.reward import TaskReward
from iwopd.training.run import TrainingRun
from iwopd.training.state import Components, State
from iwopd.types import Tokenizer


def training_run(
    config: Config,
    checked: Checked,
    folder: RunFolder,
    display: Display,
    interrupts: Interrupts,
    stack: ExitStack,
) -> TrainingRun:
    """Everything a run works with; the run folder is made as late as can be.

    Args:
        checked: what was read before torch was imported.
        stack: closes what was opened.

    Raises:
        IwopdError: bad input, or an engine that does not start; nothing was written.
    """
    runtime.apply()
    try_weighting(config.weighting)
    inputs = read(config, checked, folder, display)
    chosen = device(config.run.device)
    display.line(f"loading student {config.student.path} on {chosen}")
    checkpoint = resumed_from(config, folder, stack)
    learner, state = load_student(config, inputs, chosen, checkpoint)
    teacher, reference = load_teachers(config, inputs, learner, checkpoint, folder, display, stack)
    sampler = start_engine(config, inputs, learner, folder, stack)
    if not folder.locked:
        stack.enter_context(folder)
    tracker = open_log(config, folder, display, state, checkpoint, stack)
    components = Components(
        student=learner,
        teacher=teacher,
        base=reference,
        engine=sampler,
        objective=Objective.of(config, inputs.vocabulary),
        stream=inputs.stream,
        benchmarks=inputs.benchmarks,
        tokenizer=inputs.tokenizer,
        dropped=inputs.dropped,
        sampling=sampling(config.rollout),
        eval_sampling=eval_sampling(config),
        parity=parity(config.rollout),
        gaps=gap_watch(config.rollout),
        reward=task_reward(config, inputs.tokenizer, stack) if config.reward.weight else None,
        stop_ids=inputs.stop_ids,
    )
    memory = stack.enter_context(MemoryWatch())
    made = TrainingRun(config, components, folder, tracker, display, interrupts, state, memory)
    if checkpoint:
        made.loop.rollouts.load(checkpoint, state)
    return made


def resumed_from(config: Config, folder: RunFolder, stack: ExitStack) -> Path | None:
    """The checkpoint that a run is resumed from, if it is: nobody else may remove it while it loads."""
    if not config.run.resume:
        return None
    if folder.path.exists():
        stack.enter_context(folder)
    return folder.last_checkpoint()


def task_reward(config: Config, tokenizer: Tokenizer, stack: ExitStack) -> TaskReward:
    """What grades the rollouts of a training.

    Args:
        stack: ends the grader's processes.
    """
    made = grader(config.eval, graded_as(config, config.data))
    stack.callback(made.close)

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True)

    return TaskReward(config.reward.weight, config.rollout.n, made, decode)


def open_log(
    config: Config, folder: RunFolder, display: Display, state: State, checkpoint: Path | None, stack: ExitStack
) -> Tracker | NoTracker:
    """train.log, with what is worth a warning, and the metrics with their mirrors."""
    if not world().leader:
        return NoTracker()
    display.log_to(folder.path / "train.log")
    display.line(describe_objective(config))
    runtime.report()
    for warning in warnings(config):
        display.line(f"warning: {warning}")
    trackers, name = chosen(config.tracking), config.run.name or folder.path.name
    tracker = Tracker(
        folder.path, state.log_offsets, trackers, folder.lock.check, state.step, name=name, config=folder.config
    )
    stack.enter_context(tracker)
    if checkpoint and (changes := version_changes(folder.path)):
        display.line(f"warning: not what this run was last trained with: {changes}; it may not end in the same bits")
    if checkpoint:
        display.line(f"resuming from {checkpoint.name} of {folder.path}")
    return tracker


@dataclass(frozen=True)
class Inputs:
    """What a run reads before any weights.

    Attributes:
        folders: of its models, by the setting that names them.
        dropped: training prompts left out as too long.
        context: the longest prompt and response together, tokens; that of the teachers is `teacher_context`, which
            their own prompts may make longer.
        vocabulary: the smallest of the models that score.
        stop_ids: end-of-sequence ids of the student and of each teacher, by their sections.
    """

    folders: dict[str, str]
    tokenizer: Tokenizer
    stream: Prompts
    dropped: int
    benchmarks: list[Benchmark]
    context: int
    teacher_context: int
    vocabulary: int
    stop_ids: dict[str, tuple[int, ...]]


def read(config: Config, checked: Checked, folder: RunFolder, display: Display) -> Inputs:
    """Tokenizers, prompts and benchmarks; checked against the models' configs, and against an earlier part of the run.

    Raises:
        IwopdError: something does not fit, or is not what it was.
    """
    folders = model_folders(model_paths(config), display.stage)
    display.line("loading tokenizers and data")
    tokenizer = student_tokenizer(config, folders["student.path"])
    stream, dropped = prompt_stream(config, checked.rows, tokenizer)
    if dropped:
        display.line(f"dropped {dropped} prompts of more than {config.data.max_prompt_tokens} tokens")
    graded = benchmarks(config.eval, checked.benchmarks, tokenizer, teacher_templates(config).get(None))
    world().alone(lambda: keep_inputs(folder, training_inputs(config, folders, stream.prompts, graded)))
    context, taught, vocabulary = _check_models(config, folders, tokenizer, stream, graded)
    ends = _stop_ids(config, folders, tokenizer)
    return Inputs(folders, tokenizer, stream, dropped, graded, context, taught, vocabulary, ends)


def _stop_ids(config: Config, folders: dict[str, str], tokenizer: Tokenizer) -> dict[str, tuple[int, ...]]:
    """Of a teacher, those that its generation config names, if it names any: the tokenizer is the student's."""
    sections: dict[str, StudentConfig | ScorerConfig] = {"student": config.student, **scorer_sections(config)}
    sections.pop("base", None)
    return {
        key: stop_ids(f"{key}.path", section, folders[f"{key}.path"], tokenizer) for key, section in sections.items()
    }


def load_student(
    config: Config, inputs: Inputs, device: torch.device, checkpoint: Path | None
) -> tuple[Student, State]:
    """The student, and how far the run is: as at the checkpoint, if there is one."""
    state = State.load(checkpoint / "trainer.json") if checkpoint else State()  # refused before weights load
    learner = student(config, inputs.folders["student.path"], device, checkpoint, context=inputs.context)
    check_vocabulary("student", learner.lm.vocabulary, config.student.path, inputs.tokenizer)
    learner.micro_batch_tokens = state.micro_batch_tokens or learner.micro_batch_tokens
    return learner, state


def load_teachers(
    config: Config,
    inputs: Inputs,
    student: Student,
    checkpoint: Path | None,
    folder: RunFolder,
    display: Display,
    stack: ExitStack,
) -> tuple[Teacher, Teacher | None]:
    """The teacher, or several as one; and the model that ExOPD measures the teacher's gain from, None without it.

    Args:
        student: of a teacher that is the student itself.
        checkpoint: holds a teacher's weights, where they follow the student's.
    """
    log_file = folder.path / "vllm.log"
    if uses_vllm(config):
        if not folder.locked:
            stack.enter_context(folder)  # vLLM's log goes there
        display.line(f"vLLM starts, a matter of seconds to minutes; its log is {log_file}")
    scored = {
        key: Served(inputs.folders[f"{key}.path"], section, inputs.teacher_context, log_file, key=key)
        for key, section in scorer_sections(config).items()
    }
    display.line("loading " + ", ".join(f"{key} {model_paths(config)[f'{key}.path']}" for key in scored))
    reference = scored.pop("base", None)
    return (
        teachers(config, scored, student.lm, checkpoint, inputs.stream.prompts, stack),
        stack.enter_context(base(config, reference, student.device)) if reference else None,
    )


def start_engine(config: Config, inputs: Inputs, student: Student, folder: RunFolder, stack: ExitStack) -> Engine:
    """The rollout engine, of which it is known that its log-probs are those of what it samples from."""
    path = inputs.folders["student.path"]
    rows, smallest = student.lm.vocabulary, inputs.vocabulary
    served = Served(
        path,
        config.student,
        inputs.context,
        folder.path / "vllm.log",
        inputs.stop_ids["student"],
        smallest if smallest < rows else None,
        "student",
        rows,
    )
    made = stack.enter_context(engine(config, served, student.lm))
    made.check_logprobs(sampling(config.rollout), inputs.stream.prompts[0])
    return made


def _check_models(
    config: Config, folders: dict[str, str], tokenizer: Tokenizer, stream: Prompts, benchmarks: list[Benchmark]
) -> tuple[int, int, int]:
    """Tokenizers must agree, and prompts and responses fit in every model.

    Returns:
        The longest prompt and response together, tokens; the same for the teachers; and the smallest vocabulary of
        those that score.
    """
    longest, response = max(len(prompt.ids) for prompt in stream.prompts), config.rollout.max_tokens
    asked = [len(prompt.ids) for benchmark in benchmarks for prompt in benchmark.prompts]
    evaluated, eval_tokens = max(asked, default=0), eval_sampling(config).max_tokens if asked else 0
    context = max(longest + response, evaluated + eval_tokens)
    shown = [len(prompt.teacher_ids) for benchmark in benchmarks for prompt in benchmark.prompts if prompt.teacher_ids]
    vocabularies, taught = [], max(context, max(shown, default=0) + eval_tokens)
    for key, section in scorer_sections(config).items():
        folder = folders[f"{key}.path"]
        check_scorer_tokenizer(config, tokenizer, folder, key)
        scorer = model_config(f"{key}.path", section, folder)
        own = longest_taught(config, key, stream.prompts)
        check_context(key, scorer, "rollout.max_tokens", own, response)
        taught = max(taught, own + response)
        check_vocabulary(key, scorer.vocab_size, str(section.path), tokenizer)
        vocabularies.append(scorer.vocab_size)
        check_top_k(config.loss, key, scorer.vocab_size)
    student = model_config("student.path", config.student, folders["student.path"])
    check_context("student", student, "rollout.max_tokens", longest, response)
    if asked:
        check_context("student", student, "eval.max_tokens", evaluated, eval_tokens)
    if any(each.path == SELF for each in teacher_sections(config).values()):
        context = taught  # one model, which must not compute positions in two ways
    return context, taught, min(vocabularies)
