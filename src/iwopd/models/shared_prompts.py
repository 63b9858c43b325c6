"""Whether a model gives the responses to one prompt the same log-probs where they read it once."""

import torch

from iwopd.errors import IwopdError
from iwopd.models.batch import collate_tokens
from iwopd.models.language_model import LanguageModel
from iwopd.types import Rollout, as_ids, as_logprobs

# Mean gap that rounding may make, of what another prompt would make. Measured: 1e-6 to 1e-4 in float32, up to 0.1 in
# bfloat16; a cache that is not looked at: 1.
ROUNDING = {torch.float32: 0.01, torch.float64: 0.01}
OTHERS = 0.3


def can_share(lm: LanguageModel) -> bool:
    """Whether the responses to one prompt may read it once: not in recurrent architectures, not in layers that are
    computed again in backward or compiled, which take no cache."""
    if lm.compiled or lm.model.is_gradient_checkpointing:
        return False
    if lm.shares_prompts is None:
        lm.shares_prompts = agrees(lm)
    return lm.shares_prompts


@torch.no_grad()
def agrees(lm: LanguageModel) -> bool:
    """Found out by a pass over two prompts of unlike lengths, each with two responses."""
    prompts, other = ([1, 2, 3], [4, 5, 6, 7, 8]), ([9, 10, 11], [12, 13, 14, 15, 16])
    training = lm.model.training
    lm.model.eval()
    try:
        alone, shared, without = (
            lm.token_logprobs(collate_tokens(*_rollouts(chosen, lm.vocabulary), device=lm.device, share=share))
            for chosen, share in ((prompts, False), (prompts, True), (other, False))
        )
    except (IwopdError, torch.OutOfMemoryError):
        raise
    except Exception:  # whatever an architecture raises that takes no cache of the usual kind
        return False
    finally:
        lm.model.train(training)
    computed = torch.bfloat16 if lm.autocast_enabled else lm.model.dtype
    gap, effect = (alone - shared).abs().mean(), (alone - without).abs().mean()
    return bool(gap <= ROUNDING.get(computed, OTHERS) * effect)


def _rollouts(prompts: tuple[list[int], ...], vocabulary: int) -> tuple[list[Rollout], list[tuple[int, int]]]:
    responses = ([3, 1, 4, 1, 5], [9, 2, 6])
    rollouts = [
        Rollout(
            "",
            as_ids([token % vocabulary for token in prompt]),
            as_ids([token % vocabulary for token in response]),
            as_logprobs([0.0] * len(response)),
            "length",
        )
        for prompt in prompts
        for response in responses
    ]
    return rollouts, [(0, len(rollout.response_ids)) for rollout in rollouts]
