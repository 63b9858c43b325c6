"""The alarm for students that stop ending their answers, a known way for on-policy distillation to fail (SimOPD).

Pure functions of how the responses of a run's first and last steps end: `alarm` says whether something is wrong, and
what is likely to be the cause.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean

import numpy

from iwopd.types import ScoredRollout

WINDOW = 3  # steps at either end that are compared
FALL = 0.5  # of the share that ends, which is an alarm
SURE = 4.0  # standard errors a fall must have, for one look is taken at every step
PRESSING = 0.99  # of the longest response allowed: where the median is, most responses are cut
APART = 3.0  # nats by which a teacher gives less to the end of a response than the student, if it would not stop there
CLOSER = 0.8  # of the first reverse KL: below, the student has come closer to the teacher
BETTER = 0.05  # gain in accuracy


@dataclass(frozen=True)
class Endings:
    """How the responses of one step end.

    Attributes:
        step: counted from 1.
        responses, finished: how many there are, and how many ended by an end-of-sequence token.
        length_p50, length_p90: quantiles of their lengths, tokens.
        limit: the longest a response could be, tokens.
        reverse_kl: nats per token.
        eos_gap: nats by which the student's log-prob of the end-of-sequence token is above the teacher's, where
            responses end; None where no end was scored.
    """

    step: int
    responses: int
    finished: int
    length_p50: float
    length_p90: float
    limit: int
    reverse_kl: float
    eos_gap: float | None

    @property
    def metrics(self) -> dict[str, float]:
        """Under the keys of metrics.jsonl."""
        found = {
            "train/finished": self.finished / self.responses,
            "train/length_p50": self.length_p50,
            "train/length_p90": self.length_p90,
        }
        return found if self.eos_gap is None else found | {"train/eos_gap": self.eos_gap}


def endings(scored: Sequence[ScoredRollout], *, step: int, limit: int, reverse_kl: float) -> Endings:
    """Of one step's records; the student's log-prob of an end is the trainer's where it was recorded, else the
    sampler's."""
    lengths = numpy.array([len(record.rollout.response_ids) for record in scored])
    p50, p90 = numpy.quantile(lengths, [0.5, 0.9], method="inverted_cdf").tolist()
    ended = [record for record in scored if record.rollout.finish_reason == "stop"]
    gaps = [_gap(record) for record in ended if record.stop == len(record.rollout.response_ids) > record.start]
    gap = fmean(gaps) if gaps else None
    return Endings(step, len(scored), len(ended), float(p50), float(p90), limit, reverse_kl, gap)


def _gap(record: ScoredRollout) -> float:
    own = record.rollout.sampler_logprobs if record.trainer_logprobs is None else record.trainer_logprobs
    return float(own[-1]) - float(record.teacher_logprobs[-1])


@dataclass
class Watched:
    """What the alarm remembers, kept in checkpoints: the endings of the first steps, and of the last, as plain values
    of `Endings`. After an alarm the last become the first, so that another one means that it got worse since."""

    first: list[dict[str, float | None]] = field(default_factory=list[dict[str, float | None]])
    last: list[dict[str, float | None]] = field(default_factory=list[dict[str, float | None]])

    def see(self, seen: Endings) -> None:
        """One more step."""
        if len(self.first) < WINDOW:
            self.first.append(asdict(seen))
        self.last = [*self.last, asdict(seen)][-WINDOW:]

    def restart(self) -> None:
        """After an alarm."""
        self.first = list(self.last)


@dataclass(frozen=True)
class Context:
    """What the likely cause depends on beside the endings.

    Attributes:
        stop_ids: end-of-sequence ids of the student and of each teacher, by their sections.
        bounded: a single token can weigh no more than some bound in the loss.
        accuracy, first_accuracy: of the last evaluation and the first; None without.
    """

    stop_ids: Mapping[str, Sequence[int]]
    bounded: bool = False
    accuracy: float | None = None
    first_accuracy: float | None = None


def alarm(watched: Watched, context: Context) -> str | None:
    """What is wrong and the likely cause, in one line; None where nothing is.

    The share of responses that end fell to half of what it was; or it fell, and the median response has come to be cut
    while the student is no closer to the teacher. The fall must be beyond chance, and in a run whose accuracy rises and
    is not bounded by that share neither is wrong.
    """
    first, last = ([Endings(**values) for values in steps] for steps in (watched.first, watched.last))  # pyright: ignore
    if len(first) < WINDOW or last[0].step <= first[-1].step:
        return None
    before, now = _share(first), _share(last)
    if _standard_errors(first, last) < SURE or _still_improves(now, context):
        return None
    if now > FALL * before and not (_presses(last) and not _presses(first) and not _closer(first, last)):
        return None
    return (
        f"responses stop ending: {before:.2f} of them did in {_steps(first)}, {now:.2f} in {_steps(last)} (length p50 "
        f"{_mean(first, 'length_p50'):.0f} → {_mean(last, 'length_p50'):.0f}, p90 {_mean(first, 'length_p90'):.0f} → "
        f"{_mean(last, 'length_p90'):.0f} of at most {last[-1].limit} tokens, reverse KL "
        f"{_mean(first, 'reverse_kl'):.3g} → {_mean(last, 'reverse_kl'):.3g} nats per token); likely cause: "
        + _cause(first, last, context)
    )


def _cause(first: Sequence[Endings], last: Sequence[Endings], context: Context) -> str:
    gaps = [[each.eos_gap for each in steps if each.eos_gap is not None] for steps in (last, first)]
    gap = next((fmean(found) for found in gaps if found), None)  # of the first steps where none ends any more
    own = set(context.stop_ids.get("student", ()))
    others = {key: ids for key, ids in context.stop_ids.items() if set(ids) != own}
    if others and (gap is None or gap > APART):
        key, ids = next(iter(others.items()))
        return (
            f"EOS ids that differ: the student ends responses with {_listed(own)}, {key} with {_listed(ids)}; set "
            "eos_token_id alike in both generation_config.json"
        )
    if gap is not None and gap > APART:
        return (
            f"a teacher that would not stop there either: where responses end, it gives EOS {gap:.1f} nats less than "
            "the student does (train/eos_gap); look at its chat template and at what it was trained to end with, or "
            "choose another teacher"
        )
    if context.bounded or _closer(first, last):
        return (
            f"max_tokens too small for what the teacher would write; raise rollout.max_tokens={last[-1].limit}, or "
            "choose a teacher that answers more briefly"
        )
    return (
        "a sampled signal without bound: single tokens that the teacher finds very unlikely outweigh all others; use "
        "loss=reverse_kl, or a smaller optim.lr"
    )


def _share(steps: Sequence[Endings]) -> float:
    return sum(each.finished for each in steps) / sum(each.responses for each in steps)


def _standard_errors(first: Sequence[Endings], last: Sequence[Endings]) -> float:
    """How many of them the share that ends has fallen by (two-proportion z)."""
    before, now = (sum(each.responses for each in steps) for steps in (first, last))
    pooled = sum(each.finished for each in (*first, *last)) / (before + now)
    error = math.sqrt(pooled * (1 - pooled) * (1 / before + 1 / now))
    return (_share(first) - _share(last)) / error if error else 0.0


def _still_improves(share: float, context: Context) -> bool:
    if context.accuracy is None or context.first_accuracy is None:
        return False
    return context.accuracy >= context.first_accuracy + BETTER and share >= context.accuracy


def _presses(steps: Sequence[Endings]) -> bool:
    return fmean(each.length_p50 / each.limit for each in steps) >= PRESSING


def _closer(first: Sequence[Endings], last: Sequence[Endings]) -> bool:
    return _mean(last, "reverse_kl") <= CLOSER * _mean(first, "reverse_kl")


def _mean(steps: Sequence[Endings], name: str) -> float:
    return fmean(getattr(each, name) for each in steps)


def _steps(steps: Sequence[Endings]) -> str:
    return f"steps {steps[0].step} to {steps[-1].step}"


def _listed(ids: Sequence[int] | set[int]) -> str:
    return ", ".join(map(str, sorted(ids))) or "none"
