"""FSDP2 on one card against none: what the gathering costs where there is nobody to gather from."""

import tempfile
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from gpu_parts.common import WEIGHTING, Work, empty, timed
from gpu_parts.speed import new_student, scored_at_random
from iwopd.config import OptimConfig
from iwopd.models.compiled import compile_layers
from iwopd.models.sharding import shard
from iwopd.models.student import Student
from iwopd.training.objective import Objective
from iwopd.training.update import update


def sharded(device: torch.device, shape: dict[str, int], work: Work, compiled: bool) -> dict[str, Any]:
    """Seconds and memory of an update, and how far apart the weights are after the first."""
    found, ends = {}, []
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", init_method=f"file://{folder}/store", rank=0, world_size=1
        )
        try:
            for name in ("one", "fsdp", "fsdp, compiled")[: 2 + compiled]:
                student = new_student(device, shape)
                if "compiled" in name:
                    compile_layers(student.lm)
                if "fsdp" in name:
                    shard(student.lm, init_device_mesh(device.type, (1,), mesh_dim_names=("shard",)))
                    student = Student(student.lm, OptimConfig(lr=1e-6), student.micro_batch_tokens)
                scored = scored_at_random(work, shape["vocab_size"])

                def run(student: Student = student, scored: Any = scored) -> None:
                    update(student, scored, Objective(WEIGHTING), seeds=range(work.sequences))

                run()
                if len(ends) < 2:
                    ends.append({key: weight.float().cpu().clone() for key, weight in student.named_weights()})
                found[name] = timed(device, run, work.tokens)
                del student, run
                empty(device)
        finally:
            dist.destroy_process_group()
    one, several = ends
    gap = max(float((several[key] - weight).norm() / weight.norm().clamp(min=1e-12)) for key, weight in one.items())
    ratio = found["fsdp"]["seconds"] / found["one"]["seconds"]
    return {"ok": gap < 1e-4, **found, "seconds_ratio": round(ratio, 3), "weights_rel": gap}
