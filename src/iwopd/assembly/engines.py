"""Teachers and rollout engines: one `match` per group."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from iwopd.assembly.models import language_model, torch_device
from iwopd.assembly.parallel import shard_teacher, sharded_teacher
from iwopd.assembly.vllm import Served, vllm_engine, vllm_server_engine, vllm_server_teacher, vllm_teacher
from iwopd.config import (
    Config,
    HfRolloutConfig,
    HfScoringConfig,
    RolloutConfig,
    VllmRolloutConfig,
    VllmScoringConfig,
    VllmServerRolloutConfig,
    VllmServerScoringConfig,
)
from iwopd.config.models import SELF
from iwopd.config.teachers import teacher_sections
from iwopd.errors import ConfigError
from iwopd.models.language_model import LanguageModel
from iwopd.parallel import world
from iwopd.rollout.base import Engine
from iwopd.rollout.divided import DividedEngine, LedEngine
from iwopd.rollout.hf import HfEngine
from iwopd.scoring.base import Teacher
from iwopd.scoring.hf import HfTeacher
from iwopd.scoring.led import LedTeacher
from iwopd.scoring.prompted import PromptedTeacher
from iwopd.scoring.router import TeacherRouter
from iwopd.scoring.self_teacher import AverageTeacher, CurrentTeacher
from iwopd.scoring.vllm_states import LmHead
from iwopd.types import Prompt

log = logging.getLogger(__name__)


def teacher(
    config: Config,
    served: Served,
    device: torch.device,
    student: LanguageModel | None = None,
    checkpoint: Path | None = None,
) -> Teacher:
    """One teacher, where the `scoring` group wants it.

    Args:
        device: where it computes with scoring=hf, unless its section says otherwise.
        student: of a teacher that is the student itself with its current weights.
        checkpoint: holds the weights of a teacher that follows the student; None where it begins.

    Raises:
        IwopdError: its model cannot be loaded, or its engine or servers cannot be used.
    """
    found = _teacher(config, served, device, student, checkpoint)
    return found if getattr(served.section, "prompt_template", None) is None else PromptedTeacher(found)


def _teacher(
    config: Config, served: Served, device: torch.device, student: LanguageModel | None, checkpoint: Path | None
) -> Teacher:
    match config.scoring:
        case HfScoringConfig() if teacher_sections(config)[served.key].path == SELF:
            return _self_teacher(config, served, device, student, checkpoint)
        case HfScoringConfig():
            return _hf_teacher(config, served, device)
        case VllmScoringConfig() as scoring:
            return vllm_teacher(scoring, served, config.loss.teacher_signal, lambda: _head(served, device))
        case VllmServerScoringConfig() as scoring:
            signal = config.loss.teacher_signal

            def make() -> Teacher:
                return vllm_server_teacher(scoring, served, signal, lambda: _head(served, device))

            led = world().size > 1
            return LedTeacher(make, device if signal.kind == "full" else None) if led else make()
        case other:
            raise ConfigError(f"scoring={type(other).__name__}: no teacher of that kind; choose scoring=hf")


def teachers(
    config: Config,
    served: Mapping[str, Served],
    student: LanguageModel,
    checkpoint: Path | None,
    prompts: Sequence[Prompt],
    stack: ExitStack,
) -> Teacher:
    """The teacher; of several, each scores the answers to the prompts that name it.

    Args:
        served: by the key of the section.
        student, checkpoint: see `teacher`.
        stack: closes them.
    """
    found = {
        key: stack.enter_context(teacher(config, each, student.device, student, checkpoint))
        for key, each in served.items()
    }
    if len(found) == 1:
        return found["teacher"]
    named = {key.removeprefix("teachers."): each for key, each in found.items() if key != "teacher"}
    return TeacherRouter({config.teacher.name: found["teacher"], **named}, config.teacher.name, prompts)


def base(config: Config, served: Served, device: torch.device) -> Teacher:
    """The model ExOPD starts from, scored in this process whatever the teacher runs in."""
    return _hf_teacher(config, served, device)


def _head(served: Served, device: torch.device) -> LmHead:
    """A teacher's head, from its files; the rest of the model is given up."""
    section: Any = served.section
    key, home = f"{served.key}.path", torch.device("cpu")
    return LmHead(language_model(key, section, served.folder, home, context=served.context), device)


def _hf_teacher(
    config: Config,
    served: Served,
    device: torch.device,
    make: Callable[..., HfTeacher] = HfTeacher,
    *,
    autocast: bool = False,
) -> HfTeacher:
    section: Any = served.section
    own = torch_device(f"{served.key}.device", section.device) if section.device else device
    tokens = config.scoring.batch_tokens if isinstance(config.scoring, HfScoringConfig) else None
    home = torch.device("cpu") if section.offload else own
    if sharded_teacher(config):
        home = torch.device("cpu" if world().leader else "meta")
    lm = language_model(f"{served.key}.path", section, served.folder, home, autocast=autocast, context=served.context)
    shard_teacher(config, lm)
    return make(lm, own, tokens, section.offload, config.rollout.shares_prompts)


def _self_teacher(
    config: Config, served: Served, device: torch.device, student: LanguageModel | None, checkpoint: Path | None
) -> HfTeacher:
    """Computes as the student does, so that with the same prompt it would say the same."""
    section: Any = served.section
    if section.weights == "current":
        tokens = config.scoring.batch_tokens if isinstance(config.scoring, HfScoringConfig) else None
        assert student is not None, "whoever has one passes it"
        return CurrentTeacher(student, device, tokens, share_prompts=config.rollout.shares_prompts)
    kept = checkpoint is not None and section.weights == "average"
    begun = replace(served, folder=str(checkpoint / served.key)) if kept and checkpoint else served
    average = partial(AverageTeacher, decay=section.decay, key=served.key)
    make = HfTeacher if section.weights == "frozen" else average
    return _hf_teacher(config, begun, device, make, autocast=config.optim.autocast)


def engine(config: Config, served: Served, lm: LanguageModel | None = None) -> Engine:
    """The rollout engine of the `rollout` group.

    Args:
        lm: the model itself, for engines that sample from it.

    Raises:
        IwopdError: an engine or server cannot be used.
    """
    if world().size == 1:
        return _own_engine(config, served, lm)
    match config.rollout:
        case VllmServerRolloutConfig():
            return LedEngine(lambda: _own_engine(config, served, lm))
        case VllmRolloutConfig() as rollout:
            own = world().together(lambda: _own_engine(config, served, lm))
            return DividedEngine(own, neighbours=rollout.engine.tensor_parallel)
        case _:
            return DividedEngine(_own_engine(config, served, lm), lm)


def _own_engine(config: Config, served: Served, lm: LanguageModel | None) -> Engine:
    match config.rollout:
        case HfRolloutConfig() as rollout:
            assert lm is not None, "hf samples from the model in this process"
            return HfEngine(lm, served.stop_ids, rollout.batch_size, served.vocabulary)
        case VllmRolloutConfig() as rollout:
            return vllm_engine(config, rollout, served)
        case VllmServerRolloutConfig() as rollout:
            return vllm_server_engine(config, rollout, served)
        case other:
            raise ConfigError(f"rollout={type(other).__name__}: no engine of that kind; choose rollout=hf")


def teacher_engine(rollout: RolloutConfig, served: Served, lm: LanguageModel) -> Engine:
    """Samples from a teacher in transformers, whatever engine the student has."""
    size = rollout.batch_size if isinstance(rollout, HfRolloutConfig) else HfRolloutConfig().batch_size
    return HfEngine(lm, served.stop_ids, size, served.vocabulary)
