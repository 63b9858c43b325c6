"""`iwopd train`: check and load everything, cheapest first; then `Trainer` runs the loop."""

import sys
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from iwopd import build, runtime
from iwopd.commands.parts import Parts, State
from iwopd.commands.trainer import Trainer
from iwopd.config import Config
from iwopd.display import Display
from iwopd.interrupts import ForcedStop, Interrupts, Stopped
from iwopd.store import RunFolder
from iwopd.tracking import Tracker

if TYPE_CHECKING:
    from iwopd.data import Prompts
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
    folders = build.model_folders(build.model_paths(config), display.stage)
    student_folder = folders["student.path"]
    display.line("loading tokenizers and data")
    tokenizer = build.student_tokenizer(config, student_folder)
    stream, dropped = build.prompt_stream(config, checked.rows, tokenizer)
    if dropped:
        display.line(f"dropped {dropped} prompts of more than {config.data.max_prompt_tokens} tokens")
    benchmarks = build.benchmarks(config.eval, checked.benchmarks, tokenizer)
    device = build.device(config.run.device, config.run.deterministic)
    context, vocabulary = _check_models(config, folders, tokenizer, stream, benchmarks)

    display.line(f"loading student {config.student.path} on {device}")
    if config.run.resume and folder.path.exists():
        stack.enter_context(folder)  # nobody else may remove the checkpoint while it loads
    checkpoint = folder.last_checkpoint() if config.run.resume else None
    student = build.student(config, student_folder, device, checkpoint)
    build.check_vocabulary("student", student.lm.vocabulary, config.student.path, tokenizer)
    state = State.load(checkpoint / "trainer.json") if checkpoint else State()
    student.micro_batch_tokens = state.micro_batch_tokens or student.micro_batch_tokens

    log_file = folder.path / "vllm.log"
    if build.uses_vllm(config):
        if not folder.held:
            stack.enter_context(folder)  # vLLM's log goes there
        display.line(f"vLLM starts, a matter of seconds to minutes; its log is {log_file}")
    scored = {
        key: build.Served(
            folders[f"{key}.path"], section, context + 1, log_file, key=key
        )  # vLLM samples one token more
        for key, section in build.scorer_sections(config).items()
    }
    display.line("loading " + ", ".join(f"{key} {build.model_paths(config)[f'{key}.path']}" for key in scored))
    base = scored.pop("base", None)
    base = stack.enter_context(build.base(config, base, device)) if base else None
    teacher = build.teachers(config, scored, device, stream.prompts, stack)
    stops = build.stop_ids("student.path", config.student, student_folder, tokenizer)
    known = vocabulary if vocabulary < student.lm.vocabulary else None
    sampled = build.Served(student_folder, config.student, context, log_file, stops, known, "student")
    engine = stack.enter_context(build.engine(config, sampled, student.lm))
    engine.check_logprobs(build.sampling(config.rollout), stream.prompts[0])
    if not folder.held:
        stack.enter_context(folder)
    display.log_to(folder.path / "train.log")
    runtime.report()
    tracker = Tracker(folder.path, state.written, build.mirrors(config, folder.path, asdict(config)))
    stack.callback(tracker.close)
    if checkpoint:
        display.line(f"going on from {checkpoint.name} of {folder.path}")
    parts = Parts(student, teacher, base, engine, weighting, stream, benchmarks, tokenizer, dropped)
    trainer = Trainer(config, parts, folder, tracker, display, interrupts, state)
    stack.enter_context(trainer.memory)
    return trainer


def _check_models(
    config: Config, folders: dict[str, str], tokenizer: Any, stream: "Prompts", benchmarks: "list[Benchmark]"
) -> tuple[int, int]:
    """Tokenizers must agree, and prompts and responses fit in every model.

    Returns:
        The longest prompt and response together, tokens; and the smallest vocabulary of those that score.
    """
    longest, response = max(len(prompt.ids) for prompt in stream.prompts), config.rollout.max_tokens
    evaluated = max(len(prompt.ids) for benchmark in benchmarks for prompt in benchmark.prompts)
    eval_tokens = build.eval_sampling(config).max_tokens
    vocabularies = []
    for key, section in build.scorer_sections(config).items():
        folder = folders[f"{key}.path"]
        build.check_scorer_tokenizer(config, tokenizer, folder, key)
        scorer = build.model_config(f"{key}.path", section, folder)
        build.check_context(key, scorer, "rollout.max_tokens", longest, response)
        build.check_vocabulary(key, scorer.vocab_size, str(section.path), tokenizer)
        vocabularies.append(scorer.vocab_size)
    student = build.model_config("student.path", config.student, folders["student.path"])
    build.check_context("student", student, "rollout.max_tokens", longest, response)
    build.check_context("student", student, "eval.max_tokens", evaluated, eval_tokens)
    return max(longest + response, evaluated + eval_tokens), min(vocabularies)
