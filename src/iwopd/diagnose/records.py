"""What a diagnosis holds: plain lists, as they stand in diagnose.json."""

from dataclasses import dataclass
from typing import Any

BINS = 10  # tenths of a response
POINTS = BINS + 1  # prefixes of 0, 10, … 100 %
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)

Values = list[float | None]  # None where nothing was there to be measured


@dataclass(frozen=True)
class Curve:
    """Accuracy with its 95 % interval over prompts, one value per prefix; `right` has 1 or 0 for each prefix and
    prompt, so that differences can be judged paired."""

    accuracy: list[float]
    low: list[float]
    high: list[float]
    right: list[list[int]]


@dataclass(frozen=True)
class Continuation:
    """Who still gets it right from the student's prefixes of 0, 10, … 100 % (fig. 1b of arXiv 2606.22600).

    Attributes:
        prompts: how many.
        prompt_ids: which, in the order of `Curve.right`.
    """

    prompts: int
    prompt_ids: list[str]
    teacher: Curve | None
    student: Curve


@dataclass(frozen=True)
class Spending:
    """How one weighting scheme spends its weight.

    Attributes:
        weight: share of Σ |w| in each tenth.
        advantage: share of Σ |w·A| in each tenth.
        effective_sample_size: (Σw)² / Σw², as a share of the tokens.
    """

    weight: list[float]
    advantage: list[float]
    effective_sample_size: float


@dataclass(frozen=True)
class LogRatio:
    """Σ_{t≤k} (log π_T − log π_θ) in nats after prefixes of 0, 10, … 100 %: mean, quantiles over rollouts, examples."""

    mean: list[float]
    quantiles: dict[str, list[float]]
    examples: list[dict[str, Any]]


@dataclass(frozen=True)
class Diagnosis:
    """One student against the teacher.

    Attributes:
        name: which student.
        step: optimisation steps it had taken; 0 for an untrained one.
        rollouts, tokens: how many were scored.
        length: mean length of a response, tokens.
        truncated: share of responses cut by rollout.max_tokens.
        top_k: size of the sets whose overlap was measured.
        mean: each quantity over all tokens: abs_advantage, reverse_kl, entropy, teacher_entropy and sampler_gap
            (|trainer − sampler| log-prob) in nats per token, overlap as a share.
        relative: each quantity by tenth of the response.
        absolute: each quantity by position, `width` tokens to a bin.
        counts: tokens in each bin of `absolute`.
        share: each tenth's share of Σ|A| and of Σ KL; None where positive and negative tenths cancel, as Σ−A can.
        full_vocabulary: False where reverse_kl is the sampled tokens' −A, the teacher giving no distributions.
        kl_over: what reverse_kl is made over, in words.
    """

    name: str
    step: int
    rollouts: int
    tokens: int
    length: float
    truncated: float
    full_vocabulary: bool
    top_k: int
    mean: dict[str, float]
    relative: dict[str, Values]
    width: int
    absolute: dict[str, Values]
    counts: list[int]
    share: dict[str, Values]
    log_ratio: LogRatio
    weighting: dict[str, Spending]
    continuation: Continuation | None
    kl_over: str = "the whole vocabulary"
