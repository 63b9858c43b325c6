"""What the numbers mean, in words. Each rule is a function from a `Diagnosis` to a sentence; `advise` lists them."""

import math

from iwopd.diagnosis.records import BINS, Continuation, Curve, Diagnosis

NEGLIGIBLE = 0.1  # share of |A| that sampler noise may have before it is worth a word
LITTLE = 0.25  # of the teacher's head start over the student: what is left where rollouts teach little more


def advise(found: Diagnosis) -> list[str]:
    """Position bias, the 30 % window, the length of a rollout, and noise: a sentence or two on each."""
    return [position_bias(found), window(found), horizon(found), *noise(found)]


def position_bias(found: Diagnosis) -> str:
    """Is there position bias? By the teacher's continuation accuracy, where it was measured."""
    fall = found.log_ratio.mean[-1]
    drift = (
        f"Along a response the prefix log-ratio falls to {fall:.0f} nats on average, {found.log_ratio.mean[3]:.0f} of "
        "them in the first 30 %."
    )
    curve = found.continuation.teacher if found.continuation else None
    if curve is None:
        return f"Whether late tokens teach less was not measured: that takes continuations by the teacher. {drift}"
    start, third = curve.accuracy[0], curve.accuracy[3]
    said = f"the teacher answers {start:.0%} right from the prompt and {third:.0%} from 30 % of the student's response"
    if curve.high[3] >= curve.low[0]:
        return f"Little position bias: {said}, which is within the noise of {_prompts(found)}. {drift}"
    first = next(point for point in range(BINS + 1) if curve.high[point] < curve.low[0])
    return (
        f"Position bias: {said}; the fall is beyond the noise from {first * 10} % on. What the teacher says of later "
        f"tokens is mostly said of prefixes it cannot save. {drift}"
    )


def window(found: Diagnosis) -> str:
    """What the first 30 % keep."""
    advantage, kl = (sum(found.share[name][:3]) for name in ("abs_advantage", "reverse_kl"))
    name = "the reverse KL" if found.full_vocabulary else "Σ−A (the sampled tokens' reverse KL)"
    size = math.ceil(0.3 * found.length)
    said = f"A 30 % window (weighting=first30) keeps {advantage:.0%} of |A| and {kl:.0%} of {name} on {size} of "
    dense = advantage / 0.3
    judged = (
        f"a token in it carries {dense:.1f} times the average disagreement"
        if dense > 1
        else f"a token in it carries less disagreement than the average ({dense:.1f} times)"
    )
    return f"{said}{found.length:.0f} tokens: {judged}."


def horizon(found: Diagnosis) -> str:
    """How long a rollout is worth generating."""
    head_start = _head_start(found.continuation) if found.continuation else None
    if head_start is None:
        share = _reaching(found.share["abs_advantage"], 0.8)
        return (
            f"How long a rollout is worth generating is not known without continuations; 80 % of |A| lies in the first "
            f"{share:.0%} ({math.ceil(share * found.length)} tokens)."
        )
    if head_start[0] <= 0.02:
        return (
            "The teacher answers these prompts no better than the student: there is little to distil here at any "
            "length; choose harder prompts or another teacher."
        )
    little = (point for point in range(BINS) if max(head_start[point:]) <= LITTLE * head_start[0])
    point = next(little, BINS)
    tokens = max(1, math.ceil(point / BINS * found.length))
    if point >= 8:
        return (
            f"The teacher keeps its head start until {point * 10} % of a response: generate whole rollouts, and weigh "
            "all tokens (uniform or iw)."
        )
    return (
        f"Rollouts are worth generating to about {point * 10} % of their length ({tokens} tokens) at first: behind "
        f"that the teacher's head start, {head_start[0]:.2f} from the prompt, is {head_start[point]:.2f} or less. A "
        "window or a horizon saves the rest, for some steps: tails that are never trained may break, so watch the "
        "accuracy, and let the horizon grow (weighting=growing_horizon)."
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


def _head_start(continuation: Continuation) -> list[float] | None:
    """How much more often the teacher is right than the student, from each prefix."""
    teacher: Curve | None = continuation.teacher
    if teacher is None:
        return None
    return [ours - theirs for ours, theirs in zip(teacher.accuracy, continuation.student.accuracy, strict=True)]


def _reaching(parts: list[float], wanted: float) -> float:
    """The shortest prefix, in tenths, whose parts add up to `wanted`."""
    return next((tenth / BINS for tenth in range(1, BINS) if sum(parts[:tenth]) >= wanted), 1.0)


def _prompts(found: Diagnosis) -> str:
    assert found.continuation is not None, "asked only where the teacher's curve was measured"
    return f"{found.continuation.prompts} prompts"
