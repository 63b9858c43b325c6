"""Responses and tokens of one `Engine.generate`, as they are written."""

from iwopd.rollout.base import Progress


class Tally:
    """Reports to `progress` how far sampling is.

    Args:
        total: responses asked for.
        longest: tokens each may have at most.
    """

    def __init__(self, total: int, longest: int, progress: Progress):
        self.total = total
        self.longest = longest
        self._progress = progress
        self._done = self._tokens = 0

    def keep(self, responses: int, tokens: int) -> None:
        """So many more responses are whole, and have so many tokens together."""
        self._done += responses
        self._tokens += tokens
        self.under_way(0)

    def under_way(self, tokens: int, ended: int = 0, ended_tokens: int = 0) -> None:
        """Beside those kept, so many tokens are written; of them some belong to responses that have ended."""
        done, whole = self._done + ended, self._tokens + ended_tokens
        self._progress(done, self.total, self._tokens + tokens, whole + (self.total - done) * self.longest)


class Series:
    """Several calls of `Engine.generate` that make one stage.

    Args:
        total: responses of all calls.
        longest: tokens each may have at most.
    """

    def __init__(self, total: int, longest: int, progress: Progress):
        self.total = total
        self.longest = longest
        self._progress = progress
        self._done = self._tokens = 0  # at the last report

    def call(self) -> Progress:
        """For the next call, which begins where the one before ended."""
        done_before, tokens_before = self._done, self._tokens

        def tell(done: int, own: int, tokens: int = 0, most: int = 0, /) -> None:
            self._done, self._tokens = done_before + done, tokens_before + tokens
            later = (self.total - done_before - own) * self.longest
            self._progress(self._done, self.total, self._tokens, tokens_before + most + later)

        return tell
