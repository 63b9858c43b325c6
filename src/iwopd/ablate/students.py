"""Which student each seed of a study trains."""

from collections.abc import Mapping, Sequence

from iwopd.ablate.arms import Arm, override_key, shown
from iwopd.config import Config
from iwopd.errors import ConfigError
from iwopd.preflight.paths import check_path

OF_THE_SEED = ("student", "student.path")  # overrides by which an arm would have a student of its own


def study_students(config: Config, arms: Sequence[Arm], seeds: Sequence[int], given: Sequence[str]) -> dict[int, str]:
    """The student of each seed: those of ablate.students in turn; empty where that is not set, and all arms train
    their own student.path.

    Args:
        given: the command line's overrides.

    Raises:
        ConfigError: no students, one twice, one that is no model, or one named by the command line or an arm as well.
        ModelError: a folder that holds no whole model.
    """
    students = config.ablate.students
    if students is None:
        return {}
    said = f"ablate.students={shown(students)}"
    if not students:
        raise ConfigError(f"{said}: names no student; list their paths, or leave it out to train student.path")
    twice = next((path for path in students if students.count(path) > 1), None)
    if twice is not None:
        raise ConfigError(f"{said}: duplicate student {twice}; list each once")
    own = next((item for item in given if override_key(item) == "student.path"), None)
    if own is not None:
        raise ConfigError(f"{own}: ablate.students names the students already; add it there, or leave one of both out")
    for arm in arms:
        own = next((item for item in arm.overrides if override_key(item) in OF_THE_SEED), None)
        if own is not None:
            raise ConfigError(
                f"ablate.arms={arm.name}: {own}: ablate.students names the students, and all arms of a seed train the "
                "same; leave one of both out"
            )
    for path in students:
        check_path("ablate.students", path, config.student.revision)
    return {seed: students[index % len(students)] for index, seed in enumerate(seeds)}


def by_student(students: Mapping[int, str]) -> dict[str, list[int]]:
    """The seeds of each student."""
    return {path: [seed for seed in students if students[seed] == path] for path in dict.fromkeys(students.values())}
