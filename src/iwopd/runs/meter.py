"""How far a stage is, how fast, and how long it will take, in words that promise no more than is known."""

import time
from collections import deque
from collections.abc import Callable

WINDOW = 30.0  # seconds over which the rate is taken: it falls when few sequences are left in a batch
SAMPLE = 0.5  # seconds between what is kept for it


class Meter:
    """Progress of one stage; safe to read while another thread updates it.

    Args:
        clock: seconds, from any start.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._began = clock()
        self._seen = deque([(self._began, 0)])
        self.done = self.total = self.tokens = self.most = 0

    def __call__(self, done: int, total: int, tokens: int = 0, most: int = 0) -> None:
        """Take note: see `iwopd.rollout.base.Progress`."""
        self.done, self.total, self.tokens, self.most = done, total, tokens, most
        now = self._clock()
        if now - self._seen[-1][0] >= SAMPLE:
            self._seen.append((now, self._amount))
            while len(self._seen) > 2 and now - self._seen[1][0] >= WINDOW:
                self._seen.popleft()

    @property
    def _amount(self) -> int:
        return self.tokens if self.most else self.done

    @property
    def expected(self) -> float:
        """Tokens, or items, there will be in all, as far as can be known now: unfinished responses are taken to end as
        often per token as those so far did, and not beyond the most they may have."""
        if not self.most:
            return self.total
        return min(self.most, self.tokens * self.total / self.done) if self.done else self.most

    @property
    def rate(self) -> float:
        """Tokens, or items, per second, of late."""
        (began, before), now = self._seen[0], self._clock()
        return (self._amount - before) / (now - began) if now > began else 0.0

    def __str__(self) -> str:
        elapsed = duration(self._clock() - self._began)
        if not self.total:
            return f"under way for {elapsed}"
        rate = self.rate
        if not self.most:
            said = [f"{self.done:,} of {self.total:,} after {elapsed}"]
        else:
            said = [f"{self.done:,} of {self.total:,} responses", f"{self.tokens:,} tokens after {elapsed}"]
            said += [_speed(rate)] if rate else []
        return ", ".join(said + ([self._left(rate)] if rate > 0 and self._amount else []))

    def short(self) -> str:
        """How far, how fast and how long, for a narrow screen that has a bar and a clock."""
        if not self.total:
            return "under way"
        rate = self.rate
        said = [f"{self.done:,}/{self.total:,}"]
        if self.most and rate:
            said.append(_speed(rate))
        return ", ".join(said + ([self._left(rate).partition(",")[0]] if rate > 0 and self._amount else []))

    def _left(self, rate: float) -> str:
        likely, most = (self.expected - self._amount) / rate, ((self.most or self.total) - self._amount) / rate
        if self.most and not self.done:  # how long a response is, nobody knows yet
            return f"at most {duration(most)} left"
        return f"about {duration(likely)} left" + (f", at most {duration(most)}" if most > 1.2 * likely + 10 else "")


def _speed(rate: float) -> str:
    return f"{rate:,.3g} tokens/s" if rate < 100 else f"{rate:,.0f} tokens/s"


def duration(seconds: float) -> str:
    """Short: 45 s, 3 min, 2 h 05 min."""
    if seconds < 90:
        return f"{max(0.0, seconds):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
