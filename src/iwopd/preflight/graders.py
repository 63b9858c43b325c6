"""Can the benchmarks of a config be graded here, and as it says?"""

import logging
from importlib.util import find_spec

import regex

from iwopd.config import BenchmarkConfig, Config, EvalConfig, graded_as
from iwopd.errors import ConfigError
from iwopd.evaluation.grading.sandbox import refusal

log = logging.getLogger(__name__)


def check_graders(config: EvalConfig) -> None:
    """Refuse graders that cannot be used.

    Raises:
        ConfigError: the first that cannot; says why.
    """
    for name, source in config.benchmarks.items():
        _check_grader(config, source, f"eval.benchmarks.{name}")
    if any(source.grader == "code" for source in config.benchmarks.values()):
        _check_sandbox(config)


def check_reward(config: Config) -> None:
    """Likewise for the grader of a training's reward, where there is one."""
    if not config.reward.weight:
        return
    source = graded_as(config, config.data)
    _check_grader(config.eval, source, "reward")
    if source.grader == "code":
        _check_sandbox(config.eval)


def _check_grader(config: EvalConfig, source: BenchmarkConfig, key: str) -> None:
    """Refuse a grader that cannot be used.

    Raises:
        ConfigError: says why.
    """
    for field in ("answer_pattern", "reference_pattern"):
        pattern = getattr(source, field)
        try:
            regex.compile(pattern or "")
        except regex.error as error:
            raise ConfigError(f"{key}.{field}={pattern}: not a regular expression: {error}; correct it") from None
    if source.grader != "exact" and source.answer_pattern is not None:
        raise ConfigError(
            f"{key}.answer_pattern={source.answer_pattern}: grader={source.grader} finds the answer itself; "
            "set it to null, or use grader=exact"
        )
    if source.grader == "math" and find_spec("math_verify") is None:
        raise ConfigError(f"{key}.grader=math: math-verify is not installed; pip install 'math-verify[antlr4_9_3]'")
    if source.grader == "code" and not config.allow_code_execution:
        raise ConfigError(
            f"{key}.grader=code: runs programs that the model wrote; allow it with eval.allow_code_execution=true, "
            "and see eval.sandbox for what confines them"
        )
    if source.grader == "code" and find_spec("evalplus") is None:
        raise ConfigError(f"{key}.grader=code: evalplus is not installed; pip install 'iwopd[code]'")


def sandbox_mode(config: EvalConfig) -> str:
    """What confines programs: namespaces, container or none."""
    return "namespaces" if config.sandbox == "auto" else config.sandbox


def _check_sandbox(config: EvalConfig) -> None:
    reason = refusal(sandbox_mode(config))
    if reason is not None:
        raise ConfigError(
            f"eval.sandbox={config.sandbox}: programs that the model wrote cannot be confined here: {reason}; set "
            "eval.sandbox=container in a container without network and with nothing to lose, or eval.sandbox=none to "
            "let them reach your files and network"
        )
    if config.sandbox == "none":
        log.warning("eval.sandbox=none: programs that the model wrote can reach your files and network")
