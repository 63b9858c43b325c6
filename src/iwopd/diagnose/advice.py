"""What the numbers mean, in words. Each rule is a function from a `Diagnosis` to a sentence; `advise` lists them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from iwopd.diagnose.records import BINS, Continuation, Curve, Diagnosis
from iwopd.report.paired import LEVEL, adjusted_pvalues, sign_flip_pvalue

NEGLIGIBLE = 0.1  # share of |A| that sampler noise may have before it is worth a word
LITTLE = 0.25  # of the teacher's head start over the student: what is left where rollouts teach little more
WINDOW = 3  # tenths of a response in the paper's window, where position bias is asked for first


@dataclass(frozen=True)
class Judged:
    """The mean of differences, one per prompt, and its two-sided p-value by sign flips."""

    mean: float
    p: float

    @property
    def above(self) -> bool:
        """Above 0 beyond the noise."""
        return self.mean > 0 and self.p <= LEVEL

    @property
    def below(self) -> bool:
        """Below 0 beyond the noise."""
        return self.mean < 0 and self.p <= LEVEL

    def __str__(self) -> str:
        return f"paired p = {self.p:.2g}"


def judge(differences: Sequence[float]) -> Judged:
    """Judge differences that come prompt by prompt."""
    return Judged(fmean(differences), sign_flip_pvalue(differences))


def advise(found: Diagnosis) -> list[str]:
    """Position bias, the 30 % window, the length of a rollout, and noise: a sentence or two on each."""
    return [position_bias(found), window(found), horizon(found), *noise(found)]


def position_bias(found: Diagnosis) -> str:
    """Is there position bias? By the teacher's continuation accuracy, where it was measured.

    The fall from the prompt to 30 % is judged alone; where it is clear, those to 20 and 10 % in turn, as long as they
    are; where it is not, those to 40 … 90 % as one family. A fall where there is none is reported in at most 5 % of
    cases: either question may err at p ≤ 0.05 to both sides, and only one side is a fall.
    """
    fall = found.log_ratio.mean[-1]
    drift = (
        f"Along a response the prefix log-ratio falls to {round(fall)} nats on average, "
        f"{round(found.log_ratio.mean[WINDOW])} of them in the first 30 %."
    )
    curve = found.continuation.teacher if found.continuation else None
    if curve is None:
        return f"Whether late tokens teach less was not measured: that takes continuations by the teacher. {drift}"
    falls = [_minus(curve.right[0], right) for right in curve.right]
    judged = judge(falls[WINDOW])
    said = (
        f"the teacher answers {curve.accuracy[0]:.0%} right from the prompt and {curve.accuracy[WINDOW]:.0%} from 30 % "
        f"of the student's response"
    )
    if judged.above:
        first = WINDOW
        while first > 1 and judge(falls[first - 1]).above:
            first -= 1
        return (
            f"Position bias: {said}; the fall is beyond the noise from {first * 10} % on ({judged} at 30 %). What the "
            f"teacher says of later tokens is mostly said of prefixes it cannot save. {drift}"
        )
    within = f"{said}, which is within the noise of {_prompts(found)} ({judged})"
    later = range(WINDOW + 1, BINS)
    corrected = zip(later, adjusted_pvalues([falls[point] for point in later]), strict=True)
    late = next((point for point, p in corrected if fmean(falls[point]) > 0 and p <= LEVEL), None)
    if late is not None:
        return (
            f"Position bias late in a response: {said}, within the noise of {_prompts(found)} ({judged}), but "
            f"{curve.accuracy[late]:.0%} from {late * 10} %, which is beyond it, corrected for looking at 40 to 90 %. "
            f"{drift}"
        )
    return f"Little position bias: {within}. {drift}"


def window(found: Diagnosis) -> str:
    """What the first 30 % keep."""
    name = "the reverse KL" if found.full_vocabulary else "Σ−A (the sampled tokens' reverse KL)"
    advantage, kl = (_first(found.share[key]) for key in ("abs_advantage", "reverse_kl"))
    size = math.ceil(0.3 * found.length)
    where = f"on {size} of {found.length:.0f} tokens"
    if advantage is None:
        return f"A 30 % window (weighting=first30) trains {where}; there is no disagreement to be shared out."
    if kl is None:
        kept = (
            f"{advantage:.0%} of |A| {where} (no share of {name}: it is {found.mean['reverse_kl']:.2g} nats per token, "
            "and positive and negative parts of a response cancel)"
        )
    else:
        kept = f"{advantage:.0%} of |A| and {kl:.0%} of {name} {where}"
    return (
        f"A 30 % window (weighting=first30) keeps {kept}: a token in it carries {advantage / 0.3:.1f} times the "
        "average disagreement."
    )


def horizon(found: Diagnosis) -> str:
    """How long a rollout is worth generating: up to where the teacher's head start is, beyond the noise, less than a
    quarter of what it is from the prompt, there and at every later tenth."""
    ahead = _head_start(found.continuation) if found.continuation else None
    if ahead is None:
        share = _reaching(found.share["abs_advantage"], 0.8)
        return (
            f"How long a rollout is worth generating is not known without continuations; 80 % of |A| lies in the first "
            f"{share:.0%} ({math.ceil(share * found.length)} tokens)."
        )
    start = judge(ahead[0])
    if not start.above or start.mean <= 0.02:
        than = "worse than the student" if start.below else "no better than the student, as far as they tell"
        return (
            f"The teacher answers these {_prompts(found)} {than} ({start.mean:+.2f}, {start}): there is little to "
            "distil here at any length; choose harder prompts, more of them (diagnose.continuations), or another "
            "teacher."
        )
    left = [judge([here - LITTLE * first for here, first in zip(point, ahead[0], strict=True)]) for point in ahead]
    said = f"the teacher's head start, {start.mean:.2f} from the prompt ({start})"
    point = BINS
    while point > 1 and left[point - 1].below:
        point -= 1
    if point < 8:
        tokens = max(1, math.ceil(point / BINS * found.length))
        most = max(fmean(differences) for differences in ahead[point:])
        return (
            f"Rollouts are worth generating to about {point * 10} % of their length ({tokens} tokens) at first: after "
            f"that {said}, is {most:.2f} or less, beyond the noise under a quarter of it. A window or a horizon saves "
            "the rest, for some steps: tails that are never trained may break, so watch the accuracy, and let the "
            "horizon grow (weighting=growing_horizon)."
        )
    if left[8].above:
        return (
            f"More than a quarter of {said}, is there until 80 % of a response: generate whole rollouts, and weigh all "
            "tokens (uniform or iw)."
        )
    return (
        f"How long {said}, lasts cannot be said with {_prompts(found)}: at 80 % of a response it is "
        f"{fmean(ahead[8]):.2f}, neither clearly above nor clearly below a quarter of that; take more "
        "(diagnose.continuations), or generate whole rollouts."
    )


def noise(found: Diagnosis) -> list[str]:
    """How much of |A| is the engine's rounding."""
    advantage, gap = found.mean["abs_advantage"], found.mean["sampler_gap"]
    share = gap / advantage if advantage else 0.0
    said = (
        f"Sampler and trainer differ by {gap:.2g} nats per token, {share:.1%} of |A|: "
        if share >= 0.001
        else f"Sampler and trainer differ by {gap:.2g} nats per token, less than 0.1 % of |A|: "
    )
    if share < NEGLIGIBLE:
        return [f"{said}the disagreement is the models', not the engine's."]
    return [
        f"{said}a good part of the disagreement is noise or another sampling distribution (temperature, top_p, top_k); "
        "use scoring.student_logprobs=trainer, and look at the engine's dtype."
    ]


def _head_start(continuation: Continuation) -> list[list[float]] | None:
    """For each prefix and prompt: 1 where the teacher alone is right, −1 where the student alone is."""
    teacher: Curve | None = continuation.teacher
    if teacher is None:
        return None
    return [_minus(ours, theirs) for ours, theirs in zip(teacher.right, continuation.student.right, strict=True)]


def _minus(ours: Sequence[int], theirs: Sequence[int]) -> list[float]:
    return [float(a - b) for a, b in zip(ours, theirs, strict=True)]


def _first(parts: Sequence[float | None]) -> float | None:
    """The share of the first 30 %; None where shares mean nothing."""
    known = [part for part in parts[:WINDOW] if part is not None]
    return sum(known) if len(known) == WINDOW and any(parts) else None


def _reaching(parts: Sequence[float | None], wanted: float) -> float:
    """The shortest prefix, in tenths, whose parts add up to `wanted`."""
    shares = [part or 0.0 for part in parts]
    return next((tenth / BINS for tenth in range(1, BINS) if sum(shares[:tenth]) >= wanted), 1.0)


def _prompts(found: Diagnosis) -> str:
    assert found.continuation is not None, "asked only where curves were measured"
    return f"{found.continuation.prompts} prompts"
