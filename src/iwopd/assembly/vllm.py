"""Engines and teachers in vLLM, from config to objects."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from iwopd._compat import name_shared_memory
from iwopd.assembly.model_configs import whole_config
from iwopd.config import (
    Config,
    HttpConfig,
    ScorerConfig,
    StudentConfig,
    VllmEngineConfig,
    VllmRolloutConfig,
    VllmScoringConfig,
    VllmServerRolloutConfig,
    VllmServerScoringConfig,
)
from iwopd.errors import ConfigError
from iwopd.models import rope
from iwopd.parallel import world
from iwopd.rollout.vllm import WORKER, VllmEngine
from iwopd.rollout.vllm_server import VllmServerEngine
from iwopd.scoring.base import Teacher
from iwopd.scoring.vllm import VllmTeacher
from iwopd.scoring.vllm_server import VllmServerTeacher
from iwopd.scoring.vllm_server_states import VllmServerStatesTeacher
from iwopd.scoring.vllm_states import LmHead, VllmStatesTeacher
from iwopd.types import Signal
from iwopd.vllm.in_process import InProcess, Settings
from iwopd.vllm.servers import Servers
from iwopd.vllm.transfer import DeviceTransport, SharedFile, to_workers_of

SCORED = 1  # vLLM samples one token more when it scores


@dataclass(frozen=True)
class Served:
    """What an engine is to serve.

    Attributes:
        folder: the model, as transformers would load it.
        section: its config section.
        context: longest prompt and response of the run together, tokens; the same for all its models.
        log_file: of engines in this process.
        stop_ids: end-of-sequence token ids.
        vocabulary: sample only ids below this; None for all.
        rows: ids that the model has, where `vocabulary` is given.
        key: the section's, for messages.
    """

    folder: str
    section: StudentConfig | ScorerConfig
    context: int
    log_file: Path
    stop_ids: tuple[int, ...] = ()
    vocabulary: int | None = None
    key: str = "teacher"
    rows: int | None = None


def uses_vllm(config: Config) -> bool:
    """True where an engine in this process writes a log."""
    return isinstance(config.rollout, VllmRolloutConfig) or isinstance(config.scoring, VllmScoringConfig)


def vllm_engine(config: Config, rollout: VllmRolloutConfig, served: Served) -> VllmEngine:
    """Starts vLLM in this process.

    Raises:
        EngineError: it does not start.
    """
    options: dict[str, Any] = {"worker_extension_cls": WORKER, "logprobs_mode": "processed_logprobs"}
    several = world().size > 1
    apart = rollout.engine.tensor_parallel > 1 and not several  # workers are then processes of their own
    if several:  # an engine per rank, or one over neighbouring ranks, on the GPUs that those have
        options["distributed_executor_backend"] = "external_launcher"
        if not torch.cuda.is_available():
            name_shared_memory(world().alone(lambda: uuid4().hex[:8]))
    if apart:
        options["weight_transfer_config"] = {"backend": "ipc"}
    dtype = engine_dtype(config, rollout.dtype)
    settings = replace(
        _settings(rollout.engine, served, dtype),
        sleep=rollout.sleep,
        # A prompt in two parts breaks a request's own random generator on a CPU (vLLM 0.32).
        whole_prompts=not torch.cuda.is_available(),
    )
    vllm = InProcess("rollout=vllm", settings, served.log_file, **options)
    send = to_workers_of(vllm.llm, getattr(torch, dtype)) if apart else None
    return VllmEngine(vllm, served.stop_ids, served.vocabulary, send)


def vllm_teacher(scoring: VllmScoringConfig, served: Served, signal: Signal, head: Callable[[], LmHead]) -> Teacher:
    """Starts vLLM in this process.

    Args:
        signal: what it will be asked for.
        head: makes the teacher's, where hidden states are asked for.

    Raises:
        EngineError: it does not start.
    """
    options: dict[str, Any] = {"enable_prefix_caching": False}  # prompt log-probs cannot come from a cache
    if signal.k:
        options["max_logprobs"] = signal.k
    section: Any = served.section
    settings = _settings(scoring.engine, served, section.dtype)
    settings = replace(settings, context=served.context + SCORED, sleep=section.offload)
    if signal.kind == "full":
        settings = replace(settings, whole_prompts=True, pooling=True)
        return VllmStatesTeacher(InProcess("scoring=vllm", settings, served.log_file, **options), head())
    vllm = InProcess("scoring=vllm", settings, served.log_file, **options)
    return VllmTeacher(vllm, scoring.engine.batch_tokens if scoring.overlap else None)


def _settings(engine: VllmEngineConfig, served: Served, dtype: str) -> Settings:
    return Settings(
        folder=served.folder,
        context=served.context,
        dtype=dtype,
        revision=served.section.revision,
        trust_remote_code=served.section.trust_remote_code,
        engine=engine,
        more=_with_rope(engine.args, served),
    )


def _with_rope(args: dict[str, Any], served: Served) -> dict[str, Any]:
    """vLLM's arguments with the positions that a model of transformers has in this run."""
    whole, text = _configs(served)
    overrides = rope.vllm_overrides(text, served.context)
    if not overrides:
        return dict(args)
    overrides = overrides if text is whole else {"text_config": overrides}
    return {**args, "hf_overrides": overrides | dict(args.get("hf_overrides", {}))}


def _configs(served: Served) -> tuple[Any, Any]:
    whole = whole_config(f"{served.key}.path", served.section, served.folder)
    return whole, whole.get_text_config(decoder=True)


def vllm_server_engine(config: Config, rollout: VllmServerRolloutConfig, served: Served) -> VllmServerEngine:
    """Reaches the servers.

    Raises:
        EngineError: one does not answer.
        ConfigError: one takes fewer tokens than are needed.
    """
    servers = _servers("rollout.urls", rollout.urls, rollout.http, served, served.context)
    dtype = getattr(torch, engine_dtype(config, rollout.dtype))
    kind: Any = rollout.sync
    route = SharedFile(servers, rollout.sync_dir, dtype) if kind == "file" else DeviceTransport(servers, kind, dtype)
    return VllmServerEngine(servers, served.stop_ids, route, served.vocabulary, served.rows)


def vllm_server_teacher(
    scoring: VllmServerScoringConfig, served: Served, signal: Signal, head: Callable[[], LmHead]
) -> VllmServerTeacher:
    """Reaches the servers, and sees that they serve the teacher.

    Args:
        head: see `vllm_teacher`; called once the servers were reached, as it may take minutes.

    Raises:
        EngineError: one does not answer, serves another model, or does not give the signal.
        ConfigError: one takes fewer tokens than are needed.
    """
    section: Any = served.section
    own = getattr(section, "urls", None)
    key, urls = (f"{served.key}.urls", own) if own else ("scoring.urls", scoring.urls)
    states = signal.kind == "full"
    servers = _servers(key, urls, scoring.http, served, served.context + (0 if states else SCORED))
    named = getattr(section, "served_as", None) or scoring.served_as
    names = [named] if named else [str(section.path), served.folder]
    if states:
        return VllmServerStatesTeacher(servers, head, scoring.overlap, names)
    return VllmServerTeacher(servers, scoring.overlap, names, signal)


def _servers(key: str, urls: list[str], http: HttpConfig, served: Served, context: int) -> Servers:
    """Args: context: tokens they must take."""
    servers = Servers(key, urls, http, os.environ.get("VLLM_API_KEY"))
    for server in servers.servers:
        if server.context and server.context < context:
            servers.close()
            raise ConfigError(
                f"{key}={server.url}: takes {server.context} tokens, and prompt and response may have {context}; "
                f"start it with --max-model-len {context}, or lower rollout.max_tokens or eval.max_tokens"
            )
        differs = rope.server_problem(_configs(served)[1], served.context, server.context)
        if differs:
            servers.close()
            raise ConfigError(f"{key}={server.url}: {differs}; or let vLLM run in this process")
    return servers


def engine_dtype(config: Config, chosen: str | None) -> str:
    """The dtype an engine samples in: by default what the student computes in."""
    return chosen or ("bfloat16" if config.optim.autocast else config.student.dtype)
