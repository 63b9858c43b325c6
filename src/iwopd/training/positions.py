"""Where in the responses of a step student and teacher disagree: means by tenth of the response."""

from collections.abc import Sequence

import numpy

from iwopd.types import ScoredRollout

TENTHS = 10
DIGITS = 5  # of the means in positions.jsonl


def by_tenth(scored: Sequence[ScoredRollout]) -> dict[str, list[float | None] | list[int]]:
    """A row of positions.jsonl.

    ``tokens``: how many were scored in each tenth of their responses, floor(10 · t / T); ``abs_advantage`` and
    ``reverse_kl``: the means over them of |log π_T − log π_θ| and of log π_θ − log π_T, nats; None where there are
    none. log π_θ is the trainer's where it was recorded, else the sampler's.
    """
    gaps, tenths = [], []
    for record in scored:
        own, length = record.trainer_logprobs, len(record.rollout.response_ids)
        if own is None:
            own = record.rollout.sampler_logprobs[record.start : record.stop]
        gaps.append(own.astype(numpy.float64) - record.teacher_logprobs)
        tenths.append(numpy.arange(record.start, record.stop) * TENTHS // max(length, 1))
    gap, places = numpy.concatenate(gaps), numpy.concatenate(tenths)
    tokens = numpy.bincount(places, minlength=TENTHS)

    def means(values: numpy.ndarray) -> list[float | None]:
        sums = numpy.bincount(places, weights=values, minlength=TENTHS).tolist()
        return [round(total / count, DIGITS) if count else None for total, count in zip(sums, tokens, strict=True)]

    return {"tokens": tokens.tolist(), "abs_advantage": means(numpy.abs(gap)), "reverse_kl": means(gap)}
