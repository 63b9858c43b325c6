"""`iwopd train`: check and load everything, cheapest first; then `Trainer` runs the loop."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iwopd import assembly
from iwopd.assembly.run_inputs import keep_inputs, training_inputs
from iwopd.config import Config
from iwopd.config.checks import warnings
from iwopd.config.stored import stored
from iwopd.machine import runtime
from iwopd.runs.about import version_changes
from iwopd.runs.console import Display
from iwopd.runs.folder import RunFolder
from iwopd.runs.interrupts import ForcedStop, Interrupts, Stopped
from iwopd.runs.tracking import Tracker
from iwopd.training.components import Parts, State
from iwopd.training.loop import Trainer
from iwopd.training.resume import another_end

if TYPE_CHECKING:
    from iwopd.data import Prompts
    from iwopd.evaluation.evaluate import Benchmark


def run(config: Config) -> float | None:
    """Train, and return the last accuracy (for Hydra's sweepers); None without a benchmark.

    Raises:
        IwopdError: bad input; nothing was written unless training had begun.
    """
    assert config.run.dir is not None, "launch settles it"
    plain, path = stored(config, "train"), Path(config.run.dir)
    folder = RunFolder(path, plain, resume=config.run.resume, may_differ=another_end(config, path))
    folder.check()
    checked = assembly.check_inputs(config)
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
    checked: assembly.Checked,
    folder: RunFolder,
    display: Display,
    interrupts: Interrupts,
    stack: ExitStack,
) -> "Trainer":
    """Load and check everything, cheapest first; the run folder is made as late as can be."""
    weighting = assembly.weighting(config.weighting)
    folders = assembly.model_folders(assembly.model_paths(config), display.stage)
    student_folder = folders["student.path"]
    display.line("loading tokenizers and data")
    tokenizer = assembly.student_tokenizer(config, student_folder)
    stream, dropped = assembly.prompt_stream(config, checked.rows, tokenizer)
    if dropped:
        display.line(f"dropped {dropped} prompts of more than {config.data.max_prompt_tokens} tokens")
    benchmarks = assembly.benchmarks(config.eval, checked.benchmarks, tokenizer)
    keep_inputs(folder, training_inputs(config, folders, stream.prompts, benchmarks))
    device = assembly.device(config.run.device, config.run.deterministic)
    context, vocabulary = _check_models(config, folders, tokenizer, stream, benchmarks)

    display.line(f"loading student {config.student.path} on {device}")
    if config.run.resume and folder.path.exists():
        stack.enter_context(folder)  # nobody else may remove the checkpoint while it loads
    checkpoint = folder.last_checkpoint() if config.run.resume else None
    state = State.load(checkpoint / "trainer.json") if checkpoint else State()
    student = assembly.student(config, student_folder, device, checkpoint, context=context)
    assembly.check_vocabulary("student", student.lm.vocabulary, config.student.path, tokenizer)
    student.micro_batch_tokens = state.micro_batch_tokens or student.micro_batch_tokens

    log_file = folder.path / "vllm.log"
    if assembly.uses_vllm(config):
        if not folder.held:
            stack.enter_context(folder)  # vLLM's log goes there
        display.line(f"vLLM starts, a matter of seconds to minutes; its log is {log_file}")
    scored = {
        key: assembly.Served(folders[f"{key}.path"], section, context, log_file, key=key)
        for key, section in assembly.scorer_sections(config).items()
    }
    display.line("loading " + ", ".join(f"{key} {assembly.model_paths(config)[f'{key}.path']}" for key in scored))
    base = scored.pop("base", None)
    base = stack.enter_context(assembly.base(config, base, device)) if base else None
    teacher = assembly.teachers(config, scored, device, stream.prompts, stack)
    stops = assembly.stop_ids("student.path", config.student, student_folder, tokenizer)
    known = vocabulary if vocabulary < student.lm.vocabulary else None
    sampled = assembly.Served(
        student_folder, config.student, context, log_file, stops, known, "student", student.lm.vocabulary
    )
    engine = stack.enter_context(assembly.engine(config, sampled, student.lm))
    engine.check_logprobs(assembly.sampling(config.rollout), stream.prompts[0])
    if not folder.held:
        stack.enter_context(folder)
    display.log_to(folder.path / "train.log")
    runtime.report()
    for warning in warnings(config):
        display.line(f"warning: {warning}")
    tracker = Tracker(folder.path, state.written, assembly.mirrors(config, folder.path, folder.config))
    stack.callback(tracker.close)
    if checkpoint and (changes := version_changes(folder.path)):
        display.line(f"warning: not what this run was last trained with: {changes}; it may not end in the same bits")
    if checkpoint:
        display.line(f"going on from {checkpoint.name} of {folder.path}")
    parts = Parts(
        student,
        teacher,
        base,
        engine,
        weighting,
        stream,
        benchmarks,
        tokenizer,
        dropped,
        loss=assembly.loss_settings(config),
        sampling=assembly.sampling(config.rollout),
        eval_sampling=assembly.eval_sampling(config),
        parity=assembly.parity(config.rollout),
        gaps=assembly.gap_watch(config.rollout),
    )
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
    asked = [len(prompt.ids) for benchmark in benchmarks for prompt in benchmark.prompts]
    evaluated, eval_tokens = max(asked, default=0), assembly.eval_sampling(config).max_tokens if asked else 0
    vocabularies = []
    for key, section in assembly.scorer_sections(config).items():
        folder = folders[f"{key}.path"]
        assembly.check_scorer_tokenizer(config, tokenizer, folder, key)
        scorer = assembly.model_config(f"{key}.path", section, folder)
        assembly.check_context(key, scorer, "rollout.max_tokens", longest, response)
        assembly.check_vocabulary(key, scorer.vocab_size, str(section.path), tokenizer)
        vocabularies.append(scorer.vocab_size)
    student = assembly.model_config("student.path", config.student, folders["student.path"])
    assembly.check_context("student", student, "rollout.max_tokens", longest, response)
    if asked:
        assembly.check_context("student", student, "eval.max_tokens", evaluated, eval_tokens)
    return max(longest + response, evaluated + eval_tokens), min(vocabularies)
