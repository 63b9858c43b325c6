"""Sampling with vLLM in the training process; the student's weights are handed over from memory to memory."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from iwopd.rollout.base import Engine, Finished, Progress, Sampling, ignore_rollout, no_progress
from iwopd.rollout.records import Answer, make_rollout
from iwopd.rollout.tally import Tally
from iwopd.seeding import derive_seed
from iwopd.types import Prompt, Rollout, as_ids, as_logprobs
from iwopd.vllm.in_process import InProcess
from iwopd.vllm.transfer import WeightSource

if TYPE_CHECKING:
    from vllm import SamplingParams

# The worker extension that takes weights over, by name: workers may be processes of their own.
WORKER = "iwopd.vllm.worker.StudentWeights"


class VllmEngine(Engine):
    """See `Engine`.

    Args:
        vllm: started with `WORKER` and ``logprobs_mode="processed_logprobs"``.
        stop_ids: end-of-sequence token ids.
        vocabulary: only ids below this are sampled; None for all the model has.
        send: how weights get to workers in processes of their own; None where the engine is all in this process.
    """

    has_own_weights = True

    def __init__(
        self,
        vllm: InProcess,
        stop_ids: Sequence[int],
        vocabulary: int | None = None,
        send: Callable[[WeightSource], None] | None = None,
    ):
        self.vllm = vllm
        self.stop_ids = list(stop_ids)
        self.vocabulary = vocabulary
        self.send_weights = send
        self.version = 0

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
        """See `Engine.generate`.

        Raises:
            NonFiniteError: log-probs are NaN or infinite.
        """
        requests = [(prompt, sample) for prompt in prompts for sample in range(sampling.n)]
        rollouts: dict[int, Rollout] = {}
        tally = Tally(len(requests), sampling.max_tokens, progress)

        def take(place: int, output: Any) -> None:  # noqa: ANN401  vLLM's RequestOutput, whose parts may all be None
            prompt, sample = requests[place]
            choice = output.outputs[0]
            ids, logprobs = as_ids(list(choice.token_ids)), as_logprobs(list(choice.logprobs.logprobs))
            rollouts[place] = make_rollout(
                prompt, sample, Answer(ids, logprobs, choice.finish_reason), sampling, self.version
            )
            finished(rollouts[place])
            tally.keep(1, len(ids))

        self.vllm.wake()
        # What a run computes may not depend on what it computed before: a resumed one has an empty cache too.
        self.reset_cache()
        self.vllm.run(
            [prompt.ids for prompt, _ in requests],
            [self._params(sampling, derive_seed(seed, stream, prompt.id, sample)) for prompt, sample in requests],
            take,
            tally.under_way,
        )
        return [rollouts[place] for place in range(len(requests))]

    def _params(self, sampling: Sampling, seed: int) -> "SamplingParams":
        return self.vllm.params(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=seed,
            stop_token_ids=self.stop_ids,
            logprobs=0,  # those of the sampled tokens alone
            flat_logprobs=True,
            detokenize=False,
            allowed_token_ids=None if self.vocabulary is None else list(range(self.vocabulary)),
        )

    def sync_weights(self, student: WeightSource, version: int) -> None:
        """Hand the student's weights over, and forget what was cached under the old ones."""
        self.vllm.wake()
        if self.send_weights is None:
            self.vllm.call("take_weights", student.named_weights())
        else:
            self.send_weights(student)
            self.vllm.call("retie")
        self.reset_cache()
        self.version = version

    def reset_cache(self) -> None:
        """See `Engine.reset_cache`."""
        self.vllm.reset_cache()

    def sleep(self) -> None:
        """See `Engine.sleep`."""
        self.vllm.sleep()

    def close(self) -> None:
        """Shut the engine down."""
        self.vllm.close()
