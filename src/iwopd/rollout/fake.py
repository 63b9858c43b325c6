"""An engine without a model, for tests of the code around engines, ours and users'."""

from collections.abc import Sequence

import numpy

from iwopd.rollout.base import Engine, Finished, Progress, Sampling, ignore_rollout, no_progress
from iwopd.seeding import derive_seed
from iwopd.types import Prompt, Rollout, as_ids


class FakeEngine(Engine):
    """Answers with token ids that follow from (seed, stream, prompt, sample), each at log-prob −1.

    Args:
        vocabulary: ids are below this.
        length: tokens per response, cut at `Sampling.max_tokens`.
    """

    def __init__(self, vocabulary: int = 16, length: int = 5):
        self.vocabulary = vocabulary
        self.length = length
        self.version = 0
        self.closed = False

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        seed: int,
        stream: int | str,
        progress: Progress = no_progress,
        finished: Finished = ignore_rollout,
    ) -> list[Rollout]:
        """See `Engine.generate`."""
        length = min(self.length, sampling.max_tokens)
        made = [
            Rollout(
                prompt_id=prompt.id,
                prompt_ids=as_ids(prompt.ids),
                response_ids=as_ids(
                    [derive_seed(seed, stream, prompt.id, sample, time) % self.vocabulary for time in range(length)]
                ),
                sampler_logprobs=numpy.full(length, -1, numpy.float32),
                finish_reason="stop" if length == self.length else "length",
                sample=sample,
                policy_version=self.version,
            )
            for prompt in prompts
            for sample in range(sampling.n)
        ]
        for rollout in made:
            finished(rollout)
        tokens = sum(len(rollout.response_ids) for rollout in made)
        progress(len(made), len(made), tokens, tokens)
        return made

    def sync_weights(self, student: object, version: int) -> None:
        """Remember the version."""
        self.version = version

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True
