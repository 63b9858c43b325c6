"""What is wrong with the teachers' settings: prompts of their own, and a teacher that is the student itself."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from iwopd.config.engines import HfScoringConfig
from iwopd.config.models import SELF, TeacherConfig
from iwopd.config.template import PROMPT, places

if TYPE_CHECKING:
    from iwopd.config import Config


def teacher_sections(config: "Config") -> dict[str, TeacherConfig]:
    """All teachers by the key of their section, the one for problems that name none first."""
    return {"teacher": config.teacher, **{f"teachers.{name}": each for name, each in config.teachers.items()}}


def teacher_name(config: "Config", key: str) -> str:
    """What problems call the teacher of that section."""
    return config.teacher.name if key == "teacher" else key.removeprefix("teachers.")


def problems(config: "Config") -> Iterator[str]:
    """One line each, with key, value, reason and fix."""
    for key, section in teacher_sections(config).items():
        if section.prompt_template is not None and not places(section.prompt_template):
            yield (
                f"{key}.prompt_template={section.prompt_template}: has no place for a column, so all problems would "
                "read alike; write {prompt} where the problem belongs, and other columns likewise"
            )
        if section.path == SELF:
            yield from _self_problems(config, key, section)
        elif section.weights != "frozen":
            yield (
                f"{key}.weights={section.weights}: {key}.path={section.path} has weights of its own, which stay as "
                f"they are; leave it out, or use {key}.path={SELF}"
            )


def _self_problems(config: "Config", key: str, section: TeacherConfig) -> Iterator[str]:
    student, said = config.student, f"{key}.path={SELF}"
    template = section.prompt_template
    if template is None or template.strip() == f"{{{PROMPT}}}":
        yield (
            f"{key}.prompt_template={template or 'null'}: {said} would say of each token what the student says, so "
            "that there is nothing to learn; give it a prompt of its own, e.g. "
            f"'{key}.prompt_template=\"{{prompt}} Answer: {{answer}}\"'"
        )
    if student.lora.rank:
        yield (
            f"{said}: does not go with adapters (student.lora.rank={student.lora.rank}); set student.lora.rank=0, or "
            f"name the frozen model beneath them: {key}.path={student.path}"
        )
    if section.weights != "frozen" and not isinstance(config.scoring, HfScoringConfig):
        yield (
            f"{key}.weights={section.weights}: follow the student's, and a teacher in vLLM keeps those it was started "
            f"with; use scoring=hf, or {key}.weights=frozen"
        )
    if section.weights == "average" and section.dtype != "float32":
        yield (
            f"{key}.dtype={section.dtype}: an average moves by less than {section.dtype} can hold; use "
            f"{key}.dtype=float32"
        )
    if section.weights == "current":
        yield from _current_problems(config, key, section)


def _current_problems(config: "Config", key: str, section: TeacherConfig) -> Iterator[str]:
    """Of a teacher whose weights are the student's own, so that it has no dtype, device or place of its own."""
    reason = f"{key}.weights=current has no weights but the student's"
    if section.dtype != config.student.dtype:
        yield f"{key}.dtype={section.dtype}: {reason}; set {key}.dtype={config.student.dtype}"
    if section.device is not None:
        yield f"{key}.device={section.device}: {reason}; leave it out"
    if section.offload:
        yield f"{key}.offload=true: {reason}; leave it out"
    if config.loss.teacher_signal.kind == "full" and config.optim.updates_per_batch > 1:
        yield (
            f"optim.updates_per_batch={config.optim.updates_per_batch}: {reason}, and its head would change between "
            f"the updates of one batch; set it to 1, or use {key}.weights=average"
        )
