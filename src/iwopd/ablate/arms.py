"""From the `ablate` section and the command line to arms, and to one training run per arm and seed."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from iwopd.config import Config
from iwopd.config.names import name_problem
from iwopd.errors import ConfigError
from iwopd.runs.checkpoints import Checkpoints

DEFAULT_ARMS = ("uniform", "first30", "last30", "iw")
# Per run, the study settles these itself; what the command line says of them is about the study.
OWN_KEYS = re.compile(r"(ablate|hydra)([./@].*)?|run\.(dir|name|resume|tokens)")

Compose = Callable[[Sequence[str]], Config]
"""From the overrides of `iwopd train` to its checked config; raises ConfigError."""


@dataclass(frozen=True)
class CommandLine:
    """What the user gave the verb.

    Attributes:
        flags: Hydra's flags that every run needs too, e.g. --config-dir.
        overrides: the overrides, without Hydra's own.
        compose: composes a training run as this command line would.
    """

    flags: list[str]
    overrides: list[str]
    compose: Compose


@dataclass(frozen=True)
class Arm:
    """One way to train: its name, which is also its folder's, and the overrides that make it."""

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """One arm with one seed: an `iwopd train` with these overrides, into this folder."""

    arm: str
    seed: int
    folder: Path
    overrides: tuple[str, ...]
    config: Config

    @property
    def name(self) -> str:
        return f"{self.arm} seed {self.seed}"

    @property
    def done(self) -> bool:
        """True for a run that came to its end: final/ is written last, and whole."""
        return Checkpoints(self.folder).final_step is not None


def begin_with_first(composed: DictConfig) -> None:
    """Give a study the first of ablate.students as student.path, where a preset such as student=hf leaves it open."""
    students = composed.ablate.students and OmegaConf.to_container(composed.ablate.students, resolve=False)
    if OmegaConf.is_missing(composed.student, "path") and isinstance(students, list) and students:
        composed.student.path = students[0]


def study_arms(config: Config, given: Sequence[str]) -> list[Arm]:
    """The arms of a study, the baseline first where it was not listed.

    Args:
        given: the command line's overrides. A `weighting=NAME` among them, with its `weighting.KEY=…`, is an arm.

    Raises:
        ConfigError: no arms, two of one name, a baseline that is none of them, or an arm that is not understood.
    """
    section = config.ablate
    own = tuple(override for override in given if override_key(override).partition(".")[0] == "weighting")
    chosen = next((override.partition("=")[2] for override in own if override_key(override) == "weighting"), None)
    if own and section.arms is not None:
        raise ConfigError(f"{own[0]}: ablate.arms lists the arms already; put it inside one of them")
    if own and chosen is None:
        raise ConfigError(f"{own[0]}: of which arm? write ablate.arms=[uniform,{{name: …, weighting: …, KEY: VALUE}}]")
    if chosen == section.baseline and len(own) == 1:
        raise ConfigError(f"{own[0]}: is the baseline itself; choose another weighting, or another ablate.baseline")
    if chosen is not None:
        name = chosen if chosen != section.baseline else f"{chosen}-changed"
        arms = [_arm(section.baseline, 0), Arm(name, own)]
    else:
        arms = [
            _arm(entry, index) for index, entry in enumerate(DEFAULT_ARMS if section.arms is None else section.arms)
        ]
    names = [arm.name for arm in arms]
    if not arms:
        raise ConfigError("ablate.arms=[]: nothing to compare; list weightings, e.g. ablate.arms=[uniform,iw]")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"ablate.arms={shown(section.arms)}: duplicate arm {twice}; give each a name of its own")
    if section.baseline not in names:
        raise ConfigError(
            f"ablate.baseline={section.baseline}: not among the arms {', '.join(names)}; add it to ablate.arms, or "
            f"choose one of them, e.g. ablate.baseline={names[0]}"
        )
    return arms


def _arm(entry: object, index: int) -> Arm:
    said = f"ablate.arms[{index}]={shown(entry)}"
    if isinstance(entry, dict):
        settings = {str(key): value for key, value in entry.items()}
        name = settings.pop("name", None)
        if name is None:
            raise ConfigError(f"{said}: has no name; write {{name: …, weighting: …, KEY: VALUE}}")
        taken = next((key for key in settings if OWN_KEYS.fullmatch(key.lstrip("+~")) or key == "seed"), None)
        if taken is not None:
            raise ConfigError(f"{said}: {taken} is the study's to set, not an arm's; leave it out")
        # Groups before their fields, whatever the order they were written in.
        ordered = sorted(settings.items(), key=lambda item: "." in item[0])
        arm = Arm(str(name), tuple(override(key, value) for key, value in ordered))
    elif isinstance(entry, str):
        arm = Arm(entry, (override("weighting", entry),))
    else:
        raise ConfigError(f"{said}: neither a weighting nor a mapping; write e.g. iw or {{name: …, weighting: …}}")
    if (problem := name_problem(arm.name)) is not None:
        raise ConfigError(f"{said}: {problem}")
    return arm


def study_seeds(config: Config, given: Sequence[str]) -> list[int]:
    """The seeds: those listed, or 1 to a count.

    Raises:
        ConfigError: none, not whole numbers, below 0, or one twice.
    """
    stray = next((override for override in given if override_key(override) == "seed"), None)
    if stray is not None:
        raise ConfigError(f"{stray}: a study has several seeds; use ablate.seeds=[{stray.partition('=')[2]},…]")
    seeds = config.ablate.seeds
    said = f"ablate.seeds={shown(seeds)}"
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        if not 1 <= seeds <= 1000:
            raise ConfigError(f"{said}: no number of seeds; use 1 to 1000, 8 is the default")
        return list(range(1, seeds + 1))
    if not isinstance(seeds, list) or not seeds:
        raise ConfigError(f"{said}: neither a number of seeds nor a list of them; use e.g. 8 or [1,2,3]")
    if not all(isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**63 for seed in seeds):
        raise ConfigError(f"{said}: a seed is a whole number of at least 0; use e.g. [1,2,3]")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{said}: duplicate seed; list each once")
    return list(seeds)


def study_runs(
    config: Config, arms: Sequence[Arm], seeds: Sequence[int], line: CommandLine, students: Mapping[int, str]
) -> list[Run]:
    """One run per seed and arm, seed by seed; every arm's config is composed and checked.

    Args:
        students: the student.path of each seed; those not in it have the arms' own.

    Raises:
        ConfigError: an arm that does not compose, one line for each of its mistakes.
    """
    assert config.run.dir is not None, "launch settles it"
    shared = [item for item in line.overrides if not OWN_KEYS.fullmatch(override_key(item)) and not _is_weighting(item)]
    base = Path(config.run.dir).resolve() / "runs"
    configs = dict[tuple[str, str | None], Config]()
    found = []
    for seed in seeds:
        student = students.get(seed)
        chosen = () if student is None else (override("student.path", student), "ablate.students=null")
        for arm in arms:
            own = (*shared, *arm.overrides, *chosen)
            if (arm.name, student) not in configs:
                configs[arm.name, student] = _composed(line, arm, own)
            folder = base / arm.name / f"seed-{seed}"
            found.append(_run(arm, seed, folder, config.run.date, own, configs[arm.name, student]))
    return found


def _composed(line: CommandLine, arm: Arm, overrides: Sequence[str]) -> Config:
    try:
        return line.compose(overrides)
    except ConfigError as error:
        raise ConfigError(*(f"ablate.arms={arm.name}: {problem}" for problem in error.problems)) from None


def _run(arm: Arm, seed: int, folder: Path, date: str | None, own: Sequence[str], config: Config) -> Run:
    """Args: date: one for all, whenever each starts; own: the overrides of its arm and student."""
    settled = (
        *(f"seed={seed}", override("run.dir", str(folder)), "run.name=null", "run.resume=true"),
        override("run.date", date),
    )
    run = replace(config.run, dir=str(folder), name=None, resume=True, date=date)
    return Run(arm.name, seed, folder, (*own, *settled), replace(config, seed=seed, run=run))


def with_budget(run: Run, tokens: int) -> Run:
    """The run that ends when it has generated as many tokens."""
    config = replace(run.config, run=replace(run.config.run, tokens=tokens))
    return replace(run, overrides=(*run.overrides, f"run.tokens={tokens}"), config=config)


def override(key: str, value: object) -> str:
    """`key=value` in Hydra's grammar, for any plain value."""
    return f"{key}={_literal(value)}"


def _literal(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case list():
            return f"[{','.join(map(_literal, value))}]"
        case dict():
            return "{" + ",".join(f"{key}:{_literal(item)}" for key, item in value.items()) + "}"
        case str() if not re.fullmatch(r"[\w/+@%?|-][\w./+@%?|:-]*", value):
            escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)  # before a quote, Hydra reads backslashes as escapes
            escaped = re.sub(r"(\\+)\Z", r"\1\1", escaped)
            return f"'{escaped}'"
        case _:
            return str(value)


def shown(value: object) -> str:
    """A value as a person would write it on the command line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    return "null" if value is None else str(value)


def override_key(item: str) -> str:
    """What an override sets."""
    return item.lstrip("+~").partition("=")[0]


def _is_weighting(item: str) -> bool:
    return override_key(item).partition(".")[0] == "weighting"
