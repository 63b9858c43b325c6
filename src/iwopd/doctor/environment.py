"""Versions, GPUs, disk: what the machine has and the config needs."""

import platform
import shutil
from importlib import metadata
from pathlib import Path

import torch

from iwopd import assembly
from iwopd.config import Config, FsdpConfig, VllmRolloutConfig, VllmScoringConfig
from iwopd.doctor import memory
from iwopd.doctor.findings import Section
from iwopd.doctor.lengths import steps
from iwopd.doctor.machine import Machine
from iwopd.doctor.plan import Plan
from iwopd.doctor.sharding import sharding
from iwopd.machine import runtime
from iwopd.preflight.packages import missing
from iwopd.runs.about import PACKAGES
from iwopd.training.schedule import Schedule


def versions(config: Config, section: Section) -> None:
    """Of Python and the packages, and what the config needs that is not installed."""
    found = [f"python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    section.note(", ".join(found))
    problems = list(missing(config))
    for problem in problems:
        section.problem(problem)
    if not problems:
        section.ok("everything the config needs is installed")


def gpus(config: Config, machine: Machine, section: Section) -> None:
    """What there is to compute with, and whether the config fits it."""
    if config.doctor.card is not None:
        machines = f"{config.doctor.machines} machines of " if config.doctor.machines > 1 else ""
        section.note(
            f"planned for {machines}{machine.gpus} × {machine.name}, {memory.size(machine.memory)} each; not for this "
            "machine"
        )
    elif torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            section.note(f"GPU {index}: {name}, {memory.size(total)}, {memory.size(free)} free")
    else:
        section.note(f"no GPU; {memory.size(machine.memory)} of host memory, {memory.size(machine.free)} free")
        section.note(str(runtime.current))
    if config.doctor.card is None:
        with section.guarded():
            device = assembly.device(config.run.device)
            section.ok(f"run.device={config.run.device}: the student trains on {device}")
    for key, group in (("rollout", config.rollout), ("scoring", config.scoring)):
        if not isinstance(group, (VllmRolloutConfig, VllmScoringConfig)):
            continue
        wanted = group.engine.tensor_parallel
        if machine.kind == "cuda" and wanted > machine.gpus:
            section.problem(
                f"{key}.engine.tensor_parallel={wanted}: there {'is' if machine.gpus == 1 else 'are'} {machine.gpus}; "
                "lower it, or plan with doctor.gpus"
            )
        elif machine.kind == "cpu" and wanted > 1:
            section.problem(f"{key}.engine.tensor_parallel={wanted}: there is no GPU to split over; set it to 1")


def processes(config: Config, machine: Machine, section: Section) -> None:
    """How many train, and whether each has a GPU."""
    shared, parallel = sharding(config, machine), config.parallel
    if not isinstance(parallel, FsdpConfig):
        if config.doctor.machines > 1 or (config.doctor.card is not None and machine.gpus > 1):
            section.note("one process trains, on one GPU; parallel=fsdp has one on each")
        return
    if machine.kind == "cuda" and shared.local > machine.gpus:
        section.problem(
            f"parallel.processes={shared.local}: there {'is' if machine.gpus == 1 else 'are'} {machine.gpus} for them; "
            "lower it, or plan with doctor.gpus"
        )
    elif shared.ranks % parallel.replicate:
        section.problem(
            f"parallel.replicate={parallel.replicate}: does not divide the {shared.ranks} processes; choose a divisor"
        )
    else:
        section.ok(f"parallel=fsdp: {shared.ranks} processes, each model divided over {shared.shards} of them")


def disk(config: Config, plan: Plan, section: Section) -> None:
    """Room for checkpoints and the final model."""
    assert config.run.dir is not None, "launch settles it"
    student, run = plan.student, config.run
    shape = student.shape
    each = memory.checkpoint_bytes(shape.parameters, student.each, shape.trained, student.trained_each)
    made = Schedule.of(config).checkpoints(steps(config))
    # A new one is whole before an old one goes.
    held = min(made, run.keep + 1) if run.keep else made
    final = shape.parameters * student.each
    needed = held * each + final
    folder = Path(config.run.dir).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    said = (
        f"{held} checkpoints × {memory.size(each)} (weights and Adam's moments) and final/ of {memory.size(final)}: "
        f"{memory.size(needed)}; {folder} has {memory.size(free)} free"
    )
    if needed > free and config.doctor.card is None:
        section.problem(f"{said}: make room, choose another run.dir, or lower run.keep={run.keep}")
    elif needed > free:
        section.warn(f"{said}, here; see that the machine you rent has more")
    else:
        section.ok(said)
