"""`iwopd diagnose`: where in a response student and teacher disagree, and what that means for the weighting."""

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from iwopd import assembly
from iwopd.config import Config, HfRolloutConfig
from iwopd.config.stored import stored
from iwopd.errors import ConfigError, RunFolderError
from iwopd.machine import runtime
from iwopd.machine.memory_watch import MemoryWatch
from iwopd.redact import cleaned
from iwopd.runs.console import Display
from iwopd.runs.folder import RunFolder, damage
from iwopd.runs.interrupts import Interrupts

if TYPE_CHECKING:
    from iwopd.diagnose.records import Continuation, Curve, Diagnosis
    from iwopd.rollout.base import Engine
    from iwopd.scoring.base import Teacher
    from iwopd.types import Rollout

# What must be as it was in the run, for its checkpoints to mean what the report says.
OF_THE_RUN = ("student.path", "student.revision", "student.lora.rank", "teacher.path", "teacher.revision")


@dataclass(frozen=True)
class Subject:
    """One student: the untrained one, or a checkpoint."""

    name: str
    step: int
    checkpoint: Path | None = None


def run(config: Config) -> None:
    """Diagnose the student, or every kept student of `diagnose.run`.

    Leaves diagnose.json, report.html and figures/ in the run folder.

    Raises:
        IwopdError: bad input; told before anything heavy loads where it can be.
    """
    assert config.run.dir is not None, "launch settles it"
    if find_spec("matplotlib") is None:
        raise ConfigError("diagnose: matplotlib is not installed; pip install 'iwopd[report]'")
    folder = RunFolder(config.run.dir, stored(config, "diagnose"), resume=config.run.resume)
    folder.check()
    name = _benchmark_name(config)
    assembly.check_vllm(config)
    assembly.check_path("student.path", config.student.path)
    assembly.check_path("teacher.path", config.teacher.path)
    subjects, note = _subjects(config)
    chosen = replace(config.eval, benchmarks={name: config.eval.benchmarks[name]})
    rows = assembly.benchmark_rows(chosen, answers=config.diagnose.continuations > 0)
    with Interrupts(), Display() as display, ExitStack() as stack:
        if note:
            display.line(note)
        if assembly.uses_vllm(config):
            stack.enter_context(folder)  # vLLM's log goes there
        stack.enter_context(MemoryWatch())
        work = _Work(config, folder.path / "vllm.log", display, stack, {name: rows[name][: config.diagnose.prompts]})
        found = [work.diagnose(subject) for subject in subjects]
        _write(config, folder, found, [note] if note else [], display)


def _benchmark_name(config: Config) -> str:
    wanted, there = config.diagnose.benchmark, config.eval.benchmarks
    if not there:
        raise ConfigError("eval.benchmarks={}: no prompts to diagnose on; choose some, e.g. benchmark=[toy]")
    if wanted is not None and wanted not in there:
        raise ConfigError(f"diagnose.benchmark={wanted}: no such benchmark; choose one of {', '.join(there)}")
    name = wanted or next(iter(there))
    if config.diagnose.continuations and there[name].answer_column is None:
        raise ConfigError(
            f"eval.benchmarks.{name}.answer_column=null: continuation accuracy needs answers; name their column, or "
            "leave it out with diagnose.continuations=0"
        )
    return name


# ---------------------------------------------------------------------------------------------- whom


def _subjects(config: Config) -> tuple[list[Subject], str | None]:
    """The students to diagnose, and what should be said about a run that kept few."""
    first = Subject("before training", 0)
    if config.diagnose.run is None:
        return [first], None
    path = Path(config.diagnose.run)
    _check_run(config, path)
    if config.student.lora.rank and not isinstance(config.rollout, HfRolloutConfig):
        raise ConfigError(
            "student.lora.rank: the adapters of checkpoints are sampled from with rollout=hf only; use it"
        )
    whole = [folder for folder in sorted((path / "checkpoints").glob("step-*")) if damage(folder) is None]
    if not whole:
        raise ConfigError(f"diagnose.run={path}: has no whole checkpoint; train it further, or name another run")
    steps = [(int(folder.name.removeprefix("step-")), folder) for folder in whole]
    subjects = [first, *(Subject(f"step {step}", step, folder) for step, folder in steps if step)]
    note = None
    if len(whole) < 3:
        listed = ", ".join(str(step) for step, _ in steps)
        note = f"{path} keeps {len(whole)} checkpoints only (step {listed}); train with run.keep=0 to keep them all"
    return subjects, note


def _check_run(config: Config, path: Path) -> None:
    """The run must be a training run of this student and this teacher.

    Raises:
        ConfigError: it is not; says what to set.
    """
    try:
        saved = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        verb = saved["verb"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        raise ConfigError(f"diagnose.run={path}: holds no run; name the folder of one, e.g. runs/NAME") from None
    if verb != "train":
        raise ConfigError(f"diagnose.run={path}: is a run of iwopd {verb}; name a training run")
    current = stored(config, verb)
    differing = [
        f"{key}={'null' if there is None else there}"
        for key in OF_THE_RUN
        if (there := _lookup(saved, key)) != _lookup(current, key)
    ]
    if differing:
        raise ConfigError(f"diagnose.run={path}: was trained with other settings; add {' '.join(differing)}")


def _lookup(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


# ---------------------------------------------------------------------------------------------- the work


class _Work:
    """Everything that stays the same from student to student: tokenizer, teacher, prompts."""

    def __init__(self, config: Config, log_file: Path, display: Display, stack: ExitStack, rows: dict[str, Any]):
        from iwopd.models.rope import context_limit
        from iwopd.scoring.hf import HfTeacher

        self.config = config
        self.display = display
        paths = {"student.path": config.student.path, "teacher.path": config.teacher.path}
        self.student_folder, teacher_folder = assembly.model_folders(paths, display.stage).values()
        self.tokenizer = assembly.student_tokenizer(config, self.student_folder)
        assembly.check_scorer_tokenizer(config, self.tokenizer, teacher_folder)
        (self.benchmark,) = assembly.benchmarks(config.eval, rows, self.tokenizer)
        self.device = assembly.device(config.run.device, config.run.deterministic)
        self.sampling = assembly.sampling(config.rollout)
        longest = max(len(prompt.ids) for prompt in self.benchmark.prompts)
        teacher_config = assembly.model_config("teacher.path", config.teacher, teacher_folder)
        student_config = assembly.model_config("student.path", config.student, self.student_folder)
        for name, model in (("student", student_config), ("teacher", teacher_config)):
            assembly.check_context(name, model, "rollout.max_tokens", longest, self.sampling.max_tokens)
        self.contexts = context_limit(student_config), context_limit(teacher_config)
        assembly.check_vocabulary("teacher", teacher_config.vocab_size, config.teacher.path, self.tokenizer)
        stops = assembly.stop_ids("student.path", config.student, self.student_folder, self.tokenizer)
        known = teacher_config.vocab_size if teacher_config.vocab_size < student_config.vocab_size else None
        context = longest + self.sampling.max_tokens
        self.served = assembly.Served(
            self.student_folder, config.student, context, log_file, stops, known, "student", student_config.vocab_size
        )
        runtime.report()
        display.line(f"loading teacher {config.teacher.path} on {self.device}")
        scored = assembly.Served(teacher_folder, config.teacher, context, log_file)
        self.teacher: Teacher = stack.enter_context(assembly.teacher(config, scored, self.device))
        self.local = self.teacher if isinstance(self.teacher, HfTeacher) else None

    def diagnose(self, subject: Subject) -> "Diagnosis":
        """All numbers of one student."""
        from iwopd.diagnose.measure import by_position, log_ratio, measure, spending
        from iwopd.diagnose.records import Diagnosis

        config, settings = self.config, self.config.diagnose
        context = self.served.context
        lm, _ = assembly.student_model(config, self.student_folder, self.device, subject.checkpoint, context=context)
        assembly.check_vocabulary("student", lm.vocabulary, config.student.path, self.tokenizer)
        whole = subject.checkpoint if subject.checkpoint and not config.student.lora.rank else None
        served = replace(self.served, folder=str(whole / "model")) if whole else self.served
        with assembly.engine(config, served, lm) as engine:
            if isinstance(config.rollout, HfRolloutConfig):
                engine.check_logprobs(self.sampling, self.benchmark.prompts[0])
            engine.load_weights(served.folder)
            with self.display.stage(f"{subject.name}: rollouts") as advance:
                rollouts = engine.generate(
                    self.benchmark.prompts, self.sampling, seed=config.seed, stream="diagnose", progress=advance
                )
            with self.display.stage(f"{subject.name}: scoring") as advance:
                measured = measure(
                    lm,
                    self.teacher,
                    rollouts,
                    full=self.local is not None,
                    top_k=settings.top_k,
                    batch_tokens=config.optim.micro_batch_tokens,
                    progress=advance,
                )
            continuation = self._continue(subject, engine, rollouts) if settings.continuations else None
        lengths = [len(rollout.response_ids) for rollout in rollouts]
        found = Diagnosis(
            name=subject.name,
            step=subject.step,
            rollouts=len(rollouts),
            tokens=sum(lengths),
            length=sum(lengths) / len(lengths),
            truncated=sum(rollout.finish_reason == "length" for rollout in rollouts) / len(rollouts),
            full_vocabulary=self.local is not None,
            top_k=settings.top_k,
            **by_position(measured),
            log_ratio=log_ratio(measured, self.tokenizer, settings.examples),
            weighting=spending(measured, assembly.schemes(config.weighting)),
            continuation=continuation,
        )
        self.display.line(_line(found))
        return found

    def _continue(self, subject: Subject, engine: "Engine", rollouts: "list[Rollout]") -> "Continuation":
        """Continuation accuracy of teacher and student, on the first sample of each of the first prompts."""
        from iwopd.diagnose.records import Continuation

        chosen = [rollout for rollout in rollouts if rollout.sample == 0][: self.config.diagnose.continuations]
        student_context, teacher_context = self.contexts
        student = self._curve(f"{subject.name}: student continues", engine, chosen, student_context)
        teacher = None
        if self.local:
            with self.local.loaded() as model:
                sampler = assembly.teacher_engine(self.config.rollout, self.served, model)
                sampler.check_logprobs(self.sampling, self.benchmark.prompts[0])
                teacher = self._curve(f"{subject.name}: teacher continues", sampler, chosen, teacher_context)
        return Continuation(len(chosen), [rollout.prompt_id for rollout in chosen], teacher, student)

    def _curve(self, title: str, engine: "Engine", rollouts: "list[Rollout]", context: int | None) -> "Curve":
        from iwopd.diagnose.continuation import continuation_curve

        with self.display.stage(title) as advance:
            return continuation_curve(
                engine,
                self.benchmark,
                rollouts,
                self.sampling,
                seed=self.config.seed,
                decode=lambda ids: self.tokenizer.decode(ids, skip_special_tokens=True),
                context=context,
                progress=advance,
            )


def _line(found: "Diagnosis") -> str:
    start = ""
    if found.continuation and found.continuation.teacher:
        accuracy = found.continuation.teacher.accuracy
        start = f"  teacher continues right: {accuracy[0]:.2f} from the prompt, {accuracy[3]:.2f} from 30 %"
    return (
        f"{found.name}: |A| {found.mean['abs_advantage']:.3f}  reverse KL {found.mean['reverse_kl']:.3f}  "
        f"length {found.length:.1f}{start}"
    )


def _write(config: Config, folder: RunFolder, found: "list[Diagnosis]", notes: list[str], display: Display) -> None:
    from iwopd.diagnose.advice import advise
    from iwopd.diagnose.figures import draw
    from iwopd.diagnose.report import report

    advice = advise(found[-1] if config.diagnose.run else found[0])
    about = {
        "student": config.student.path,
        "teacher": config.teacher.path,
        "run": config.diagnose.run,
        "prompts": found[0].rollouts // config.rollout.n,
    }
    about, notes, advice = cleaned(about), cleaned(notes), cleaned(advice)
    content = {**about, "notes": notes, "advice": advice, "students": [asdict(item) for item in found]}
    with folder:
        try:
            (folder.path / "diagnose.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
            figures = draw(found, folder.path / "figures")
            (folder.path / "report.html").write_text(report(about, found, advice, notes, figures), encoding="utf-8")
        except OSError as error:
            raise RunFolderError(f"{folder.path}: cannot be written to ({error.strerror}); make room") from error
    for sentence in advice:
        display.line(sentence)
    display.line(f"report: {folder.path / 'report.html'}")
