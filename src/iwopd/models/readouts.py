"""What is made of a model's hidden states within its forward pass, beside `LanguageModel.logprobs_of`."""

from torch import Tensor

from iwopd.models.language_model import LanguageModel, Readout
from iwopd.numerics import Comparison, Divergence, Head, chunked_comparison, chunked_divergence


def logprobs_and_states(lm: LanguageModel, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs [tokens] in nats, and the states [tokens, hidden]: with the head, a token's whole distribution."""
    return lm.logprobs_of(states, targets), states


def divergence_from(teacher_states: Tensor, teacher_head: Head, divergence: Divergence) -> Readout:
    """`ChunkedScores` against a teacher's states [tokens, hidden]."""

    def readout(lm: LanguageModel, states: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        return chunked_divergence(states, teacher_states, targets, lm.head, teacher_head, lm.chunk, divergence)

    return readout


def comparison_with(teacher_states: Tensor, teacher_head: Head, k: int) -> Readout:
    """`Comparison` with a teacher's states [tokens, hidden]; no gradients."""

    def readout(lm: LanguageModel, states: Tensor, targets: Tensor) -> Comparison:
        return chunked_comparison(states, teacher_states, targets, lm.head, teacher_head, lm.chunk, k)

    return readout
