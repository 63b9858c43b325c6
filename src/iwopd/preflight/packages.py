"""Packages that a config needs beyond those that iwopd always brings."""

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec

from iwopd.config import Config, VllmRolloutConfig, VllmScoringConfig, VllmServerRolloutConfig
from iwopd.errors import ConfigError
from iwopd.machine import host
from iwopd.preflight.paths import scorer_sections
from iwopd.tracking import chosen
from iwopd.vllm import check_installed


def missing(config: Config, verb: str = "train") -> Iterator[str]:
    """What is not installed, each as one line with the setting that asks for it."""
    needed: list[tuple[str, str, bool, str]] = [
        *((f"tracking={each.name}", each.package, verb == "train", each.name) for each in chosen(config.tracking)),
        (f"student.lora.rank={config.student.lora.rank}", "peft", bool(config.student.lora.rank), "lora"),
        (verb, "matplotlib", verb in ("ablate", "diagnose"), "report"),
    ]
    for setting, package, asked, extra in needed:
        if asked and find_spec(package) is None:
            yield f"{setting}: {package} is not installed; pip install 'iwopd[{extra}]'"
    yield from _compilers(config)
    for setting in _vllm_settings(config, verb):
        try:
            check_installed(setting)
        except ConfigError as error:
            yield str(error)


def _compilers(config: Config) -> Iterator[str]:
    """torch.compile writes C++ for a CPU, and C around its kernels for a GPU."""
    sections = {"student": config.student, **scorer_sections(config)}
    asked = [key for key, section in sections.items() if section.compile]
    variable, names = ("CC", ("gcc", "clang")) if host.has_gpu() else ("CXX", ("g++", "clang++"))
    if asked and not any(map(shutil.which, filter(None, [os.environ.get(variable), *names]))):
        yield f"{asked[0]}.compile=true: no compiler is installed; install {names[0]} or {names[1]}, or set it to false"


def check_packages(config: Config, verb: str = "train") -> None:
    """Refuse a config that needs what is not installed.

    Raises:
        ConfigError: says what to install.
    """
    problems = list(missing(config, verb))
    if problems:
        raise ConfigError(*problems)


def _vllm_settings(config: Config, verb: str) -> Iterator[str]:
    """The settings that need vLLM in this process."""
    rollout = config.rollout
    if isinstance(rollout, VllmRolloutConfig):
        yield "rollout=vllm"
    if isinstance(config.scoring, VllmScoringConfig) and verb != "eval":
        yield "scoring=vllm"
    if isinstance(rollout, VllmServerRolloutConfig) and rollout.sync != "file":
        yield f"rollout.sync={rollout.sync}"
