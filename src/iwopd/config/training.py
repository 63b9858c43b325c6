"""How a batch is trained on (`optim`); what is minimised is in `iwopd.losses` and `iwopd.weighting`."""

from dataclasses import dataclass

from iwopd.setting import setting


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """AdamW and how a batch goes through it."""

    lr: float = setting(1e-5, "peak learning rate", above=0)
    weight_decay: float = setting(0.01, "decoupled weight decay", low=0)
    betas: list[float] = setting([0.9, 0.999], "Adam's decay rates of the first and second moment")
    eps: float = setting(1e-8, "Adam's denominator term", above=0)
    grad_clip: float | None = setting(1.0, "largest gradient norm; null for no clipping", above=0)
    schedule: str = setting("constant", "after the warm-up", choices=("constant", "linear", "cosine"))
    warmup_steps: int = setting(
        0, "optimiser steps of linear warm-up; a rollout batch has updates_per_batch of them", low=0
    )
    final_lr: float = setting(0.0, "share of lr that linear and cosine end at", low=0, high=1)
    micro_batch_tokens: int = setting(32768, "tokens per forward and backward, padding included", low=1)
    updates_per_batch: int = setting(1, "optimiser steps per rollout batch, each on an equal share of it", low=1)
    autocast: bool = setting(False, "bfloat16 autocast in forward; weights keep student.dtype")
