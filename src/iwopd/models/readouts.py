"""What is made of a model's hidden states within its forward pass, beside `LanguageModel.logprobs_of`."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from iwopd.models.language_model import LanguageModel, Readout
from iwopd.numerics import Measure, TokenSignal, chunked_measures, chunked_top_k, measures_of_parts


def logprobs_and_states(lm: LanguageModel, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs [tokens] in nats, and the states [tokens, hidden]: with the head, a token's whole distribution."""
    return lm.logprobs_of(states, targets), states


def likeliest(k: int) -> Readout:
    """Log-probs [tokens] in nats, and ids and log-probs [tokens, k] of the k likeliest tokens."""

    def readout(lm: LanguageModel, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return chunked_top_k(states, targets, lm.head, lm.chunk, k)

    return readout


def measured_against(
    signals: Sequence[TokenSignal], trained: Mapping[str, Measure], known: Mapping[str, Measure]
) -> Readout:
    """Measures [tokens] by name, against what one teacher said of all tokens, or several of some each.

    Args:
        trained, known: see `chunked_measures`.
    """

    def readout(lm: LanguageModel, states: Tensor, targets: Tensor) -> dict[str, Tensor]:
        def measured(signal: TokenSignal) -> dict[str, Tensor]:
            own = slice(None) if signal.places is None else signal.places
            return chunked_measures(states[own], targets[own], lm.head, lm.chunk, signal, trained, known)

        if len(signals) == 1:
            return measured(signals[0])
        return measures_of_parts([(signal, measured(signal)) for signal in signals])

    return readout
