"""All numbers of a student: sampled from, scored, measured by position, and continued from its prefixes."""

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from iwopd import assembly
from iwopd.config import Config, HfRolloutConfig, HfScoringConfig, describe_objective
from iwopd.config.models import SELF
from iwopd.diagnose.continuation import continuation_curve
from iwopd.diagnose.measure import by_position, log_ratio, measure, spending
from iwopd.diagnose.records import Continuation, Curve, Diagnosis
from iwopd.diagnose.results import write
from iwopd.diagnose.subjects import Subject
from iwopd.machine import runtime
from iwopd.models.rope import context_limit
from iwopd.preflight.paths import model_folders, scorer_sections
from iwopd.preflight.problems import teacher_templates
from iwopd.rollout.base import Engine
from iwopd.runs.console import Display
from iwopd.runs.folder import RunFolder
from iwopd.scoring.base import Teacher
from iwopd.scoring.hf import HfTeacher
from iwopd.scoring.prompted import PromptedTeacher
from iwopd.training.objective import Objective
from iwopd.types import Rollout
from iwopd.weighting.presets import compared_schemes


class Work:
    """Everything that stays the same from student to student: tokenizer, teacher, prompts."""

    def __init__(self, config: Config, folder: RunFolder, display: Display, stack: ExitStack, rows: dict[str, Any]):
        runtime.apply()
        if assembly.uses_vllm(config):
            stack.enter_context(folder)  # vLLM's log goes there
        log_file = folder.path / "vllm.log"
        self.config = config
        self.folder = folder
        self.display = display
        section: Any = scorer_sections(config)["teacher"]
        paths = {"student.path": config.student.path, "teacher.path": section.path}
        self.student_folder, teacher_folder = model_folders(paths, display.stage).values()
        self.tokenizer = assembly.student_tokenizer(config, self.student_folder)
        assembly.check_scorer_tokenizer(config, self.tokenizer, teacher_folder)
        template = teacher_templates(config).get(None)
        (self.benchmark,) = assembly.benchmarks(config.eval, rows, self.tokenizer, template)
        self.device = assembly.device(config.run.device)
        self.sampling = assembly.sampling(config.rollout)
        longest = max(len(prompt.ids) for prompt in self.benchmark.prompts)
        taught = max(len(prompt.teacher_ids or prompt.ids) for prompt in self.benchmark.prompts)
        teacher_config = assembly.model_config("teacher.path", section, teacher_folder)
        student_config = assembly.model_config("student.path", config.student, self.student_folder)
        for name, model, prompt in (("student", student_config, longest), ("teacher", teacher_config, taught)):
            assembly.check_context(name, model, "rollout.max_tokens", prompt, self.sampling.max_tokens)
        self.contexts = context_limit(student_config), context_limit(teacher_config)
        assembly.check_vocabulary("teacher", teacher_config.vocab_size, section.path, self.tokenizer)
        stops = assembly.stop_ids("student.path", config.student, self.student_folder, self.tokenizer)
        known = teacher_config.vocab_size if teacher_config.vocab_size < student_config.vocab_size else None
        itself = config.teacher.path == SELF  # one model, which must not compute positions in two ways
        context = (max(longest, taught) if itself else longest) + self.sampling.max_tokens
        self.served = assembly.Served(
            self.student_folder, config.student, context, log_file, stops, known, "student", student_config.vocab_size
        )
        display.line(f"training would minimise: {describe_objective(config)}")
        runtime.report()
        display.line(f"loading teacher {config.teacher.path} on {self.device}")
        scored = assembly.Served(teacher_folder, section, max(longest, taught) + self.sampling.max_tokens, log_file)
        self.scored, self.follows = scored, itself and section.weights != "frozen"
        # Whole distributions wherever the teacher is here; else what the loss asks for.
        loss = replace(config.loss, signal="full") if isinstance(config.scoring, HfScoringConfig) else config.loss
        smallest = min(teacher_config.vocab_size, student_config.vocab_size)
        self.objective = Objective(config.weighting, loss, vocabulary=smallest)
        if not self.follows:
            self._take(stack.enter_context(assembly.teacher(config, scored, self.device)))

    def _take(self, teacher: Teacher) -> None:
        """The teacher; in transformers it is also here to be asked and sampled from."""
        self.teacher = teacher
        inner = teacher.teacher if isinstance(teacher, PromptedTeacher) else teacher
        self.local = inner if isinstance(inner, HfTeacher) else None

    def write(self, found: list[Diagnosis], notes: list[str]) -> None:
        """See `iwopd.diagnose.results.write`."""
        write(self.config, self.folder, found, notes, self.display)

    def diagnose(self, subject: Subject) -> Diagnosis:
        """All numbers of one student."""
        config, settings = self.config, self.config.diagnose
        context = self.served.context
        lm, _ = assembly.student_model(config, self.student_folder, self.device, subject.checkpoint, context=context)
        assembly.check_vocabulary("student", lm.vocabulary, config.student.path, self.tokenizer)
        if self.follows:
            self._take(assembly.teacher(config, self.scored, self.device, lm, subject.checkpoint))
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
                    objective=self.objective,
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
            full_vocabulary=self.objective.signal.kind != "sampled",
            kl_over=self.objective.loss.categories,
            top_k=settings.top_k,
            **by_position(measured),
            log_ratio=log_ratio(measured, self.tokenizer, settings.examples),
            weighting=spending(measured, compared_schemes(config.weighting, self.objective.signal)),
            continuation=continuation,
        )
        self.display.line(_line(found))
        return found

    def _continue(self, subject: Subject, engine: Engine, rollouts: list[Rollout]) -> Continuation:
        """Continuation accuracy of teacher and student, on the first sample of each of the first prompts."""
        chosen = [rollout for rollout in rollouts if rollout.sample == 0][: self.config.diagnose.continuations]
        student_context, teacher_context = self.contexts
        student = self._curve(f"{subject.name}: student continues", engine, chosen, student_context)
        teacher = None
        if self.local:
            with self.local.loaded() as model:
                sampler = assembly.teacher_engine(self.config.rollout, self.served, model)
                sampler.check_logprobs(self.sampling, self.benchmark.prompts[0])
                asked = [rollout.as_taught for rollout in chosen]
                teacher = self._curve(f"{subject.name}: teacher continues", sampler, asked, teacher_context)
        return Continuation(len(chosen), [rollout.prompt_id for rollout in chosen], teacher, student)

    def _curve(self, title: str, engine: Engine, rollouts: list[Rollout], context: int | None) -> Curve:
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


def _line(found: Diagnosis) -> str:
    start = ""
    if found.continuation and found.continuation.teacher:
        accuracy = found.continuation.teacher.accuracy
        start = f"  teacher continues right: {accuracy[0]:.2f} from the prompt, {accuracy[3]:.2f} from 30 %"
    return (
        f"{found.name}: |A| {found.mean['abs_advantage']:.3f}  reverse KL {found.mean['reverse_kl']:.3f}  "
        f"length {found.length:.1f}{start}"
    )
