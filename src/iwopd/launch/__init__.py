"""From a verb and Hydra's overrides to a checked `Config` and the verb's `run`; every mistake becomes one line."""

import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from iwopd import _compat
from iwopd.ablate.arms import CommandLine, begin_with_first
from iwopd.config import ENTRIES, Config, register_schemas
from iwopd.config.presets import config_folder
from iwopd.config.stored import interpolations
from iwopd.errors import ConfigError, IwopdError, OutOfMemoryError, UnsupportedVersionError, first_line
from iwopd.launch.examples import examples
from iwopd.launch.messages import explain, known_keys
from iwopd.launch.overrides import home_quoted, with_runs, wrong
from iwopd.machine import host, runtime
from iwopd.parallel import environment
from iwopd.preflight.processes import starts_processes
from iwopd.redact import clean, install
from iwopd.runs import naming

RANKS = "iwopd.commands.ranks"  # what runs for a training of several processes, which it starts
# Seconds that a rank with the leader's mistake waits: torchrun ends all as soon as one has failed, said or not.
LEADER_FIRST = 10.0


def launch(verb: str, module: str, arguments: Sequence[str]) -> None:
    """Compose the config as every Hydra program does, check it, and run the verb."""
    runtime.before_hydra()
    install()
    if verb == "report":
        arguments = with_runs(*split_flags(arguments))
    arguments = [understood(argument) for argument in arguments]
    completes = {"-sc", "--shell-completion"} & {*arguments}  # for every verb
    sys.argv = ["iwopd" if completes else f"iwopd {verb}", *overrides_last(arguments)]
    register_schemas()
    # Hydra notes a sweep in a file; runs have folders of their own, so that one goes out of the way.
    OmegaConf.register_new_resolver("scratch", tempfile.mkdtemp, use_cache=True, replace=True)

    def task(composed: DictConfig) -> object:
        try:
            return carry_out(composed, verb, module, arguments, lambda: command_line(arguments, verb))
        except IwopdError as error:
            fail(error)
        except KeyboardInterrupt as stop:
            sys.exit(getattr(stop, "status", 130))

    try:
        parser = _compat.get_args_parser()
        parser.error = lambda message: fail(ConfigError(f"{message}; see iwopd {verb} --help"))
        asks_for_help = parser.parse_args(sys.argv[1:]).help
        with ExitStack() as last:
            if asks_for_help:
                last.callback(print, examples(verb))
            hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(task)()
    except UnsupportedVersionError as error:
        fail(error)
    except (HydraException, OmegaConfBaseException) as error:
        fail(ConfigError(explain(error, arguments)))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # what Hydra lets through of odd overrides is of any type, assertions included
        if _raised_in_task(error):
            raise
        fail(ConfigError(f"{wrong(error, arguments)}: {first_line(error)}; see iwopd {verb} --help"))


def carry_out(
    composed: DictConfig,
    verb: str,
    module: str,
    overrides: Sequence[str],
    line: Callable[[], CommandLine],
    checked: Callable[[Config], None] = lambda config: None,
) -> object:
    """Check a composed config, set this process up for it, and run the verb; what its `run` returns.

    Args:
        module: where the verb's `run` is.
        line: makes the command line, for a verb that starts trainings.
        checked: is called with the config, its folder settled, before anything is done.

    Raises:
        IwopdError: see `check` and the verb's `run`.
    """
    try:
        place = environment.adopt()
        config = check(composed, verb, overrides, claim=environment.leads())
        checked(config)
        runtime.prepare(config, verb, sweep_processes())
        several = starts_processes(config, verb, place)
        run = import_module(RANKS if several else module).run  # everything heavy is imported from here on
        return run(config, line()) if several or verb == "ablate" else run(config)
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError" or isinstance(error, IwopdError):
            raise  # torch's is known by name: torch may not be imported here
        raise OutOfMemoryError(
            "the GPU's memory is full; use smaller batches, bfloat16, LoRA or teacher.offload=true"
        ) from error
    finally:
        naming.release()


# Ways to write that there is none, of which Hydra and OmegaConf understand the first alone.
NO_BENCHMARK = re.compile(r"(benchmark|\+*eval\.benchmarks)=(\[ *\]|\{ *\}|null)|~(benchmark|eval\.benchmarks)")
NO_TRACKER = {"tracking=null": "tracking=none"}


def understood(argument: str) -> str:
    """What Hydra understands, of what a user may write."""
    return "benchmark=[]" if NO_BENCHMARK.fullmatch(argument) else NO_TRACKER.get(argument) or home_quoted(argument)


VALUED_FLAGS = {
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    "--experimental-rerun",
}


def overrides_last(arguments: Sequence[str]) -> list[str]:
    """Flags before overrides: Hydra's parser takes overrides on one side of a flag only."""
    flags, overrides = split_flags(arguments)
    return flags + overrides


def split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags with their values, and overrides."""
    flags, overrides, remaining = list[str](), list[str](), list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        flags.append(argument)
        if argument in VALUED_FLAGS and remaining:
            flags.append(remaining.pop(0))
    return flags, overrides


def command_line(arguments: Sequence[str], verb: str) -> CommandLine:
    """For what starts training runs: the command line, and how it composes the config of each."""
    hydra_config = HydraConfig.get()
    if verb == "ablate" and str(hydra_config.mode).endswith("MULTIRUN"):
        raise ConfigError("--multirun: a study is a sweep already; list weightings with ablate.arms, without -m")

    def compose(overrides: Sequence[str]) -> Config:
        try:
            return check(hydra.compose(hydra_config.job.config_name, list(overrides)), "train", overrides)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain(error, overrides)) from None

    flags = [flag for flag in split_flags(arguments)[0] if flag not in ("-m", "--multirun")]
    return CommandLine(flags, list(hydra_config.overrides.task), compose)


def sweep_processes() -> int | None:
    """How many jobs of a sweep its launcher has running at one time on this machine; None where this is no such job."""
    if not HydraConfig.initialized() or not str(HydraConfig.get().mode).endswith("MULTIRUN"):
        return None
    jobs = HydraConfig.get().launcher.get("n_jobs", 1)  # joblib's; -1 for all
    return jobs if jobs > 0 else host.cores()


def check(composed: DictConfig, verb: str, overrides: Sequence[str] = (), *, claim: bool = False) -> Config:
    """The composed YAML as a checked `Config`, with the run folder settled.

    Args:
        claim: make that folder, if it is one that nobody named.

    Raises:
        ConfigError: all mistakes, one line each.
    """
    if verb == "eval" and OmegaConf.select(composed, "eval.model") is None:
        raise ConfigError("eval.model=null: nothing to measure; name a folder, e.g. eval.model=runs/NAME/final")
    if verb == "ablate":
        begin_with_first(composed)
    config = typed(composed, overrides)
    sweep = HydraConfig.initialized() and str(HydraConfig.get().mode).endswith("MULTIRUN")
    naming.settle(config, verb, HydraConfig.get().job.num if sweep else None, claim=claim)
    return config


def typed(composed: DictConfig, overrides: Sequence[str] = ()) -> Config:
    """The composed YAML as a checked `Config`.

    Raises:
        ConfigError: see `check`.
    """
    try:
        written = interpolations(composed)
        OmegaConf.resolve(composed)
        _type_entries(composed, overrides)
        unknown = list(_unknown_keys(composed))
        if unknown:
            raise ConfigError(*(f"{key}: no such key; {known_keys(key, owner)}" for key, owner in unknown))
        config = OmegaConf.to_object(composed)
    except MissingMandatoryValue as error:
        key = str(error.full_key or first_line(error).rpartition(": ")[2])
        raise ConfigError(f"{key}=???: not set; set {key}=VALUE") from None
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, overrides)) from None
    assert isinstance(config, Config)
    config.interpolations = written
    return config


def _type_entries(composed: DictConfig, overrides: Sequence[str]) -> None:
    """Give the entries of ENTRIES their schema."""
    for owner, schema in ENTRIES.items():
        entries = OmegaConf.select(composed, owner)
        for name in list(entries):
            key = f"{owner}.{name}"
            if not OmegaConf.is_dict(entries[name]):
                raise ConfigError(f"{key}={entries[name]}: not a section; write +{key}.path=…")
            try:
                entries[name] = OmegaConf.merge(OmegaConf.structured(schema), entries[name])
            except OmegaConfBaseException as error:
                raise ConfigError(explain(error, overrides, f"{key}.")) from None


def _unknown_keys(node: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys that +KEY=VALUE added beside those of the schema, which OmegaConf alone would let pass."""
    owner = OmegaConf.get_type(node)
    known = {entry.name for entry in fields(owner)} if is_dataclass(owner) else None
    for name in node:
        key = f"{prefix}{name}"
        if known is not None and name not in known:
            yield key, owner
        elif OmegaConf.is_dict(node) and not OmegaConf.is_missing(node, name) and OmegaConf.is_dict(node[name]):
            yield from _unknown_keys(node[name], key + ".")


def _raised_in_task(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "task":
            return True
        trace = trace.tb_next
    return False


def fail(error: IwopdError) -> NoReturn:
    """Print the error, a line for each problem, and exit with status 2; of several processes the leader prints."""
    problems = error.problems if isinstance(error, ConfigError) else str(error).splitlines()
    if not environment.speaks():
        time.sleep(LEADER_FIRST)
        sys.exit(2)
    for problem in problems:
        line = clean(problem).replace("\n", r"\n").replace("\t", r"\t")  # a value may hold line breaks
        print(f"iwopd: {line}", file=sys.stderr)
    sys.exit(2)
