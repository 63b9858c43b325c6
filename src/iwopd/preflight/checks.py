"""Every check of a run that needs neither torch nor a model, cheapest first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from iwopd.config import Config
from iwopd.data import Row
from iwopd.errors import ConfigError, IwopdError
from iwopd.preflight.graders import check_graders, check_reward
from iwopd.preflight.packages import check_packages
from iwopd.preflight.paths import check_path, scorer_sections
from iwopd.preflight.problems import benchmark_rows, training_rows
from iwopd.preflight.processes import check_processes


@dataclass
class Checked:
    """What was read on the way: rows of the data, by source ("data" if there is one only), and of the benchmarks."""

    rows: dict[str, list[Row]] = field(default_factory=dict[str, list[Row]])
    benchmarks: dict[str, list[Row]] = field(default_factory=dict[str, list[Row]])


Check = Callable[[Config, Checked], None]


def student(config: Config, found: Checked) -> None:
    """The student's folder, or its name on the hub."""
    check_path("student.path", config.student.path, config.student.revision)


def scorers(config: Config, found: Checked) -> None:
    """Those of every model that scores."""
    for key, section in scorer_sections(config).items():
        check_path(f"{key}.path", str(section.path), section.revision)


def packages(config: Config, found: Checked) -> None:
    """What must be installed."""
    check_packages(config)


def graders(config: Config, found: Checked) -> None:
    """What benchmarks are graded by, and rollouts where there is a reward."""
    check_graders(config.eval)
    check_reward(config)


def data(config: Config, found: Checked) -> None:
    """The training problems."""
    found.rows = training_rows(config)


def benchmarks(config: Config, found: Checked) -> None:
    """The problems of evaluations."""
    found.benchmarks = benchmark_rows(config.eval) if config.eval.benchmarks else {}


def processes(config: Config, found: Checked) -> None:
    """How many train, and who started them."""
    check_processes(config)


# Within a group no check depends on another; what a user waits for, files of any size, comes last.
CHECKS: tuple[Sequence[Check], ...] = ((processes,), (packages, student, scorers, graders), (data, benchmarks))


def check_inputs(config: Config) -> Checked:
    """All checks of a training run.

    Raises:
        IwopdError: what the first group with a mistake found; of several mistakes, a line each.
    """
    found = Checked()
    for group in CHECKS:
        errors = list[IwopdError]()
        for check in group:
            try:
                check(config, found)
            except IwopdError as error:
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise ConfigError(*(line for error in errors for line in str(error).splitlines()))
    return found
