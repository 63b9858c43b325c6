"""A teacher in vLLM, in the training process."""

from collections.abc import Sequence
from typing import Any

from iwopd.models.batch import Window
from iwopd.rollout.base import Progress, no_progress
from iwopd.scoring.base import Teacher
from iwopd.scoring.prompt_logprobs import of_flat
from iwopd.types import SAMPLED, Rollout, ScoredRollout, Signal
from iwopd.vllm.in_process import InProcess


class VllmTeacher(Teacher):
    """See `Teacher`.

    vLLM makes [tokens × vocabulary] log-probs of as many tokens as it computes at one time, which its memory profile
    does not see: `scoring.engine.batch_tokens` bounds them.

    Args:
        vllm: the engine.
        begin_at: tokens of expected rollouts that are worth a batch of their own; None to wait for `score`.
    """

    def __init__(self, vllm: InProcess, begin_at: int | None = None):
        self.vllm = vllm
        self.begin_at = begin_at
        self._expected: list[tuple[Rollout, Window]] = []
        self._done: dict[tuple[int, Signal], ScoredRollout] = {}

    def expect(self, rollout: Rollout, window: Window, signal: Signal = SAMPLED) -> None:
        """See `Teacher.expect`: as soon as a batch is full it is scored."""
        if self.begin_at is None:
            return
        self._expected.append((rollout, window))
        if sum(len(item.prompt_ids) + len(item.response_ids) for item, _ in self._expected) >= self.begin_at:
            waiting, self._expected = self._expected, []
            self._run(waiting, signal)

    def score(
        self, rollouts: Sequence[Rollout], window: Window, *, signal: Signal = SAMPLED, progress: Progress = no_progress
    ) -> list[ScoredRollout]:
        """See `Teacher.score`.

        Raises:
            NonFiniteError: a log-prob is NaN or infinite; names the rollout.
        """
        if signal.kind == "full":
            self.head()  # says that there is none
        self._expected.clear()
        missing = [(rollout, window) for rollout in rollouts if (id(rollout), signal) not in self._done]
        self._run(missing, signal, progress, len(rollouts))
        scored = [self._done[id(rollout), signal] for rollout in rollouts]
        self._done.clear()
        return scored

    def _run(
        self,
        items: Sequence[tuple[Rollout, Window]],
        signal: Signal,
        progress: Progress = no_progress,
        total: int = 0,
    ) -> None:
        from vllm import SamplingParams

        windows = [window(len(rollout.response_ids)) for rollout, window in items]
        before, tokens = len(self._done), 0
        most = sum(len(rollout.prompt_ids) + stop for (rollout, _), (_, stop) in zip(items, windows, strict=True))

        def take(place: int, output: Any) -> None:
            nonlocal tokens
            rollout, found = items[place][0], output.prompt_logprobs
            record = of_flat(rollout, windows[place], signal, found.token_ids, found.logprobs)
            self._done[id(rollout), signal] = record
            tokens += len(rollout.prompt_ids) + windows[place][1]
            progress(len(self._done), max(total, before + len(items)), tokens, most)

        self.vllm.wake()
        # One token is sampled because vLLM always samples; nobody looks at it.
        params = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=signal.k, flat_logprobs=True, detokenize=False
        )
        prompts = [rollout.ids(stop).tolist() for (rollout, _), (_, stop) in zip(items, windows, strict=True)]
        self.vllm.run(prompts, [params.clone() for _ in prompts], take)
        self.vllm.sleep()

    def close(self) -> None:
        """Shut the engine down."""
        self.vllm.close()
