"""A teacher in transformers, in the training process; its weights can wait in host memory between uses."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from iwopd._compat import onednn_linear
from iwopd.errors import NonFiniteError, OutOfMemoryError
from iwopd.models.batch import Tokens, Window, collate_tokens
from iwopd.models.language_model import LanguageModel
from iwopd.models.packing import Packing
from iwopd.models.readouts import likeliest, logprobs_and_states
from iwopd.models.sharding import is_sharded
from iwopd.models.shared_prompts import can_share
from iwopd.numerics.logprobs import Head
from iwopd.parallel import world
from iwopd.parallel.deal import limit_for
from iwopd.rollout.base import Progress, no_progress
from iwopd.scoring.base import Teacher
from iwopd.types import SAMPLED, Rollout, ScoredRollout, Signal, as_logprobs

log = logging.getLogger(__name__)

# Large enough to fill a GPU; small enough to stay in a CPU's cache.
BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}


def in_token_batches(
    rollouts: Sequence[Rollout],
    windows: Sequence[tuple[int, int]],
    batch_tokens: int,
    device: torch.device,
    function: Callable[[Tokens, Sequence[int]], Sequence[Tensor]],
    progress: Progress = no_progress,
    *,
    sharded: bool = False,
    share: bool = False,
) -> list[tuple[Tensor, ...]]:
    """What `function` makes of tokens, and of which rollouts they are, in length-sorted batches; each rollout's share.

    `function` gives [tokens, ...] tensors. Several processes divide the batches, and each gets all results.

    Args:
        sharded: a pass is one that all processes make together.
        share: let the responses to one prompt read it once, where that spares enough; see `Packing.of`.

    Raises:
        OutOfMemoryError: what cannot be halved does not fit in the GPU's memory.
    """
    packing = Packing.of(rollouts, [stop for _, stop in windows], share=share)
    lengths, own = packing.lengths, partial(collate_tokens, device=device, share=packing.shared)
    results: dict[int, tuple[Tensor, ...]] = {}

    def score(group: list[int]) -> None:
        tokens, columns = own([rollouts[i] for i in group], [windows[i] for i in group]), None
        try:
            columns = [tokens.to_rows(flat.cpu()) for flat in function(tokens, group)]
        except torch.OutOfMemoryError as error:
            if len(group) == 1 or sharded:
                raise _too_large(rollouts[group[0]].name, lengths[group[0]], len(group)) from error
        if columns is None:  # the failed pass is freed only now, after its except block
            log.warning("out of GPU memory while scoring: halving a batch of %d sequences", len(group))
            torch.cuda.empty_cache()
            score(group[: len(group) // 2])
            score(group[len(group) // 2 :])
            return
        results.update(zip(group, zip(*columns, strict=True), strict=True))
        progress(len(results), len(rollouts), sum(lengths[i] for i in results), sum(lengths))

    def idle() -> None:
        if sharded:
            shortest = lengths.index(min(lengths))
            function(own([rollouts[shortest]], [windows[shortest]]), [shortest])

    world().passes(packing.groups(limit_for(batch_tokens, packing.tokens, world().size)), lengths, score, idle)
    made = {index: result for part in world().gather(results) for index, result in part.items()}
    return [made[index] for index in range(len(rollouts))]


def _too_large(name: str, tokens: int, sequences: int) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"scoring {name}, {tokens} tokens, in a batch of {sequences} does not fit in the GPU's memory; use "
        "teacher.dtype=bfloat16, teacher.offload=true, a smaller scoring.batch_tokens or rollout.max_tokens"
    )


@dataclass(eq=False)
class HfTeacher(Teacher):
    """See `Teacher`.

    Args:
        model: the teacher; frozen.
        device: where it computes.
        batch_tokens: tokens scored at one time, padding included; None for what suits the device.
        offload: keep the weights in host memory between uses.
        share_prompts: read a prompt once for all of its responses, where the model can.
    """

    model: LanguageModel
    device: torch.device
    batch_tokens: int | None = None
    offload: bool = False
    share_prompts: bool = False

    def __post_init__(self) -> None:
        self.offload = self.offload and self.device.type != "cpu"
        self.model.model.eval().requires_grad_(False)

    @contextmanager
    def loaded(self) -> Iterator[LanguageModel]:
        """The model on its device, while the block lasts."""
        module: Any = self.model.model
        module.to(self.device)
        try:
            yield self.model
        finally:
            if self.offload:
                module.to("cpu")
                torch.cuda.empty_cache()  # the room is for the student's update

    @torch.no_grad()
    def score(
        self, rollouts: Sequence[Rollout], window: Window, *, signal: Signal = SAMPLED, progress: Progress = no_progress
    ) -> list[ScoredRollout]:
        """See `Teacher.score`.

        Raises:
            NonFiniteError: a log-prob is NaN or infinite; names the rollout.
        """
        windows = [window(len(rollout.response_ids)) for rollout in rollouts]
        with self.loaded() as model, _onednn(model, self.device):

            def function(tokens: Tokens, _: Sequence[int]) -> Sequence[Tensor]:
                match signal.kind:
                    case "sampled":
                        return [model.token_logprobs(tokens)]
                    case "top_k":
                        return model(tokens, likeliest(signal.k))
                    case "full":
                        return model(tokens, logprobs_and_states)

            results = in_token_batches(
                rollouts,
                windows,
                self.batch_tokens or BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cuda"]),
                self.device,
                function,
                progress,
                sharded=is_sharded(model),
                share=self.share_prompts and can_share(model),
            )
        scored = []
        for rollout, (start, stop), (logprobs, *more) in zip(rollouts, windows, results, strict=True):
            if not logprobs.isfinite().all():
                raise NonFiniteError(
                    f"the teacher's log-probs of rollout {rollout.name} are NaN or infinite; its weights are damaged "
                    "or overflow: try teacher.dtype=float32"
                )
            own = as_logprobs(logprobs.float().numpy())
            scored.append(ScoredRollout(rollout, start, stop, own, **record_fields(signal, more)))
        return scored

    def head(self) -> Head:
        """The LM head alone on the student's device; the rest may stay offloaded. It has no gradient, so it may be
        called within the student's forward pass however its weights came there."""
        self.model.output_embeddings.to(self.device)
        return self.model.head


def record_fields(signal: Signal, more: Sequence[Tensor]) -> dict[str, Any]:
    """Fields of a record, beside the log-probs."""
    match signal.kind:
        case "sampled":
            return {}
        case "top_k":
            ids, logprobs = more
            return {"teacher_topk_ids": ids.int().numpy(), "teacher_topk_logprobs": logprobs.float().numpy()}
        case "full":
            return {"teacher_hidden": more[0]}


@contextmanager
def _onednn(model: LanguageModel, device: torch.device) -> Iterator[None]:
    """On a CPU, PyTorch multiplies float32 matrices with MKL, which where the CPU is not Intel's takes twice as long as
    oneDNN, its other library. The operator (TorchInductor's) has no gradient, so only scoring uses it; compiled layers
    have it already."""
    linear = onednn_linear() if device.type == "cpu" and not model.compiled else None
    if linear is None:
        yield
        return
    layers: list[Any] = [
        each for each in model.modules() if type(each) is nn.Linear and each.weight.dtype == torch.float32
    ]

    def forward(layer: nn.Linear, states: Tensor) -> Tensor:
        return linear(states, layer.weight, layer.bias, "none", [], "")

    for layer in layers:
        layer.forward = partial(forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
