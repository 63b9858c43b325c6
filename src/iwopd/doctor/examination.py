"""The checks of `iwopd doctor`, in order."""

from iwopd.config import Config
from iwopd.doctor import environment, estimate, prompts, tokenizers
from iwopd.doctor.costs import costs
from iwopd.doctor.elsewhere import elsewhere
from iwopd.doctor.findings import Report, Section
from iwopd.doctor.lengths import lengths
from iwopd.doctor.live import Models, live_check
from iwopd.doctor.machine import Machine, machine_for
from iwopd.doctor.models import Scorer, student_model, teacher_model
from iwopd.doctor.plan import Plan
from iwopd.doctor.sharding import sharding
from iwopd.doctor.sources import model_sources
from iwopd.machine import host
from iwopd.runs.console import Display
from iwopd.training.objective import try_weighting
from iwopd.weighting import Weighting
from iwopd.weighting.uniform import Uniform


class Examination:
    """The checks, in order; each uses what those before it could find out."""

    def __init__(self, config: Config, report: Report, display: Display):
        self.config = config
        self.report = report
        self.display = display
        self.machine: Machine = machine_for(config.doctor, config.run.device)
        self.found = prompts.Found()
        self.made: Plan | None = None

    def surroundings(self) -> None:
        """Versions, GPUs, and what the config says."""
        environment.versions(self.config, self.report.section("Versions"))
        environment.gpus(self.config, self.machine, self.report.section("Where it would run"))
        environment.processes(self.config, self.machine, self.report.sections[-1])
        settings = self.report.section("What it would do")
        estimate.summarize(self.config, settings)
        self.weighting = self._weighting(settings)

    def models(self) -> None:
        """Folders, configs and tokenizers."""
        self.student, *self.scorers = model_sources(self.config, self.report.section("Models"), self.display.stage)
        for scorer in self.scorers:
            tokenizers.compare(self.student, scorer, self.report.section(f"Tokenizers of student and {scorer.name}"))

    def data(self) -> None:
        """Rows, prompts and lengths."""
        self.found = prompts.look(self.config, self.student, self.report.section("Data"))
        most = self.config.data.max_prompt_tokens
        longest = max((len(prompt.ids) for prompt in self.found.prompts), default=most)
        evaluated = max((len(prompt.ids) for prompt in self.found.evaluated), default=longest)
        section = self.report.section("Context")
        prompts.contexts(self.config, [self.student, *self.scorers], longest, evaluated, section)

    def plan(self) -> None:
        """Memory, disk, FLOPs and hours."""
        section = Section("Memory, at the second step")
        with section.guarded():
            self.made = self._plan()
        if self.made is None:
            if not section.findings:
                section.warn("not estimated: the config of a model is not here")
            self.report.sections.append(section)
            return
        with section.guarded():
            estimate.memory_section(self.made, [*self.made.places(), *elsewhere(self.made)], self.report)
        environment.disk(self.config, self.made, self.report.section("Disk"))
        with section.guarded():
            estimate.cost_section(self.made, costs(self.made, self.found.problems), self.report)
        if section.findings:
            self.report.sections.append(section)

    def live(self) -> None:
        """The models themselves."""
        models = Models(self.student, self.scorers, self.found.prompts)
        live_check(self.config, models, self.made, self.weighting, self.report.section("Live check"))

    def _weighting(self, section: Section) -> Weighting:
        with section.guarded():
            return try_weighting(self.config.weighting)
        return Uniform()

    def _plan(self) -> Plan | None:
        program = host.resident_bytes()
        if any(source.config is None for source in (self.student, *self.scorers)):
            return None
        kind, config = self.machine.kind, self.config
        shared = sharding(config, self.machine)
        teacher, *further = [
            Scorer(source.name, source.section, teacher_model(source.name, source.section, source.config, kind))
            for source in self.scorers
        ]
        return Plan(
            config=config,
            machine=self.machine,
            student=student_model(config, self.student.config, kind, gather=shared.gather),
            teacher=teacher.model,
            further=tuple(further),
            lengths=lengths(config, [len(prompt.ids) for prompt in self.found.prompts]),
            window=self.weighting.bounds,
            needs_batch=self.weighting.needs_batch,
            program=program,
            sharding=shared,
        )
