"""`iwopd train`: check and load everything, cheapest first; then `Trainer` runs the loop."""

import sys
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from iwopd import build
from iwopd.commands.trainer import Parts, State, Trainer
from iwopd.config import Config
from iwopd.display import Display
from iwopd.interrupts import ForcedStop, Interrupts, Stopped
from iwopd.store import RunFolder
from iwopd.tracking import Tracker

if TYPE_CHECKING:
    from iwopd.data import PromptStream
    from iwopd.stages.evaluation import Benchmark


def run(config: Config) -> float:
    """Train, and return the last accuracy (for Hydra's sweepers).

    Raises:
        IwopdError: bad input; nothing was written unless training had begun.
    """
    assert config.run.dir is not None, "launch settles it"
    folder = RunFolder(config.run.dir, {"verb": "train", **asdict(config)}, resume=config.run.resume)
    folder.check()
    checked = build.check_inputs(config)
    with Interrupts() as interrupts, Display() as display, ExitStack() as stack:
        try:
            trainer = prepare(config, checked, folder, display, interrupts, stack)
            return trainer.train()
        except ForcedStop as stop:
            display.line("stopped at once; the last checkpoint stays: go on with run.resume=true")
            sys.exit(stop.status)
        except Stopped as stop:
            display.line("stopped before training began")
            sys.exit(stop.status)


def prepare(
    config: Config,
    checked: build.Checked,
    folder: RunFolder,
    display: Display,
    interrupts: Interrupts,
    stack: ExitStack,
) -> "Trainer":
    """Load and check everything, cheapest first; the run folder is made as late as can be."""
    weighting = build.weighting(config.weighting)
    paths = {"student.path": config.student.path, "teacher.path": config.teacher.path}
    student_folder, teacher_folder = build.model_folders(paths, display.stage).values()
    display.line("loading tokenizers and data")
    tokenizer = build.student_tokenizer(config, student_folder)
    build.check_teacher_tokenizer(config, tokenizer, teacher_folder)
    stream, dropped = build.prompt_stream(config, checked.rows, tokenizer)
    if dropped:
        display.line(f"dropped {dropped} prompts of more than {config.data.max_prompt_tokens} tokens")
    benchmarks = build.benchmarks(config.eval, checked.benchmarks, tokenizer)
    device = build.device(config.run.device, config.run.deterministic)
    teacher_config = build.model_config("teacher.path", config.teacher, teacher_folder)
    student_config = build.model_config("student.path", config.student, student_folder)
    context = _check_contexts(config, student_config, teacher_config, stream, benchmarks)

    display.line(f"loading student {config.student.path} on {device}")
    if config.run.resume and folder.path.exists():
        stack.enter_context(folder)  # nobody else may remove the checkpoint while it loads
    checkpoint = folder.last_checkpoint() if config.run.resume else None
    student = build.student(config, student_folder, device, checkpoint)
    build.check_vocabulary("student", student.lm.vocabulary, config.student.path, tokenizer)
    build.check_vocabulary("teacher", teacher_config.vocab_size, config.teacher.path, tokenizer)
    state = State.load(checkpoint / "trainer.json") if checkpoint else State()
    student.micro_batch_tokens = state.micro_batch_tokens or student.micro_batch_tokens

    display.line(f"loading teacher {config.teacher.path}")
    log_file = folder.path / "vllm.log"
    scored = build.Served(teacher_folder, config.teacher, context + 1, log_file)  # vLLM samples one token more
    stops = build.stop_ids("student.path", config.student, student_folder, tokenizer)
    known = teacher_config.vocab_size if teacher_config.vocab_size < student.lm.vocabulary else None
    sampled = build.Served(student_folder, config.student, context, log_file, stops, known)
    if build.uses_vllm(config):
        if not folder.held:
            stack.enter_context(folder)  # vLLM's log goes there
        display.line(f"starting vLLM, a matter of seconds to minutes; its log is {log_file}")
    teacher = stack.enter_context(build.teacher(config, scored, device))
    engine = stack.enter_context(build.engine(config, sampled, student.lm))
    engine.check_logprobs(build.sampling(config.rollout), stream.prompts[0])
    if not folder.held:
        stack.enter_context(folder)
    display.log_to(folder.path / "train.log")
    tracker = Tracker(folder.path, state.written, build.mirrors(config, folder.path, asdict(config)))
    stack.callback(tracker.close)
    if checkpoint:
        display.line(f"going on from {checkpoint.name} of {folder.path}")
    parts = Parts(student, teacher, engine, weighting, stream, benchmarks, tokenizer, dropped)
    return Trainer(config, parts, folder, tracker, display, interrupts, state)


def _check_contexts(
    config: Config, student: Any, teacher: Any, stream: "PromptStream", benchmarks: "list[Benchmark]"
) -> int:
    """Prompts and responses must fit in both models; the longest of them together, tokens."""
    longest = max(len(prompt.ids) for prompt in stream.prompts)
    evaluated = max(len(prompt.ids) for benchmark in benchmarks for prompt in benchmark.prompts)
    eval_tokens = build.eval_sampling(config).max_tokens
    for name, model_config in (("student", student), ("teacher", teacher)):
        build.check_context(name, model_config, "rollout.max_tokens", longest, config.rollout.max_tokens)
    build.check_context("student", student, "eval.max_tokens", evaluated, eval_tokens)
    return max(longest + config.rollout.max_tokens, evaluated + eval_tokens)
