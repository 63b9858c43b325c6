"""How the student answers (`rollout`) and the teacher scores (`scoring`), with transformers or vLLM."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from iwopd.setting import DTYPES, setting


@dataclass(kw_only=True, slots=True)
class RolloutConfig:
    """How the student answers."""

    max_tokens: int = setting(16384, "longest response, tokens", low=1)
    temperature: float = setting(1.0, "sampling temperature; training needs a distribution, so above 0", above=0)
    top_p: float = setting(
        1.0,
        "nucleus: the most likely tokens that reach this probability; below 1 a policy gradient misses the others",
        above=0,
        high=1,
    )
    top_k: int = setting(0, "the most likely tokens only, 0 for all; a policy gradient misses the others", low=0)
    n: int = setting(1, "responses per prompt", low=1)
    share_prompts: bool = setting(
        True,
        "with n above 1, transformers reads a prompt once to score its responses and once to train on them, where that "
        "spares a fifth of the tokens: equal but for rounding",
    )
    horizon: float | None = setting(
        None,
        "longest response while training: tokens, or below 1 a share of the mean whole response; null for max_tokens",
        above=0,
    )
    horizon_end: float | None = setting(
        None, "horizon at the last step, in the unit of horizon; null keeps it as it is", above=0
    )
    horizon_power: float = setting(5.0, "it grows with this power of the progress: above 1 late", above=0)
    ahead: int = setting(
        0,
        "steps by which responses are written ahead: with 1, servers write the next step's while this one's are scored "
        "and trained on, by the student of before that update; loss.importance_cap bounds the correction for it",
        low=0,
        high=1,
    )

    stop_early: str = setting(
        "none",
        "which responses end while others are written, in training: weightless, where no later token can have weight; "
        "drift, agreement: the least and the most like the teacher's, by mean |A_t|; random, their control",
        choices=("none", "weightless", "drift", "agreement", "random"),
    )
    stop_every: int = setting(64, "with drift, agreement and random: tokens between two such choices", low=1)
    stop_keep: float = setting(0.5, "share of the responses under way that each choice continues", above=0, high=1)

    @property
    def shares_prompts(self) -> bool:
        """Whether there are responses that may read their prompt together."""
        return self.share_prompts and self.n > 1


@dataclass(kw_only=True, slots=True)
class HfRolloutConfig(RolloutConfig):
    """Sampling with transformers, in the training process."""

    batch_size: int = setting(64, "sequences sampled at one time", low=1)


@dataclass(kw_only=True, slots=True)
class VllmEngineConfig:
    """A vLLM engine in the training process."""

    sequences: int = setting(256, "sequences computed at one time", low=1)
    batch_tokens: int = setting(
        4096, "tokens computed at one time; for a teacher this bounds [tokens × vocabulary] log-probs", low=1
    )
    tensor_parallel: int = setting(1, "GPUs a model is split over", low=1)
    gpu_memory: float = setting(0.4, "share of a GPU's memory the engine may take", above=0, high=1)
    kv_cache_gib: float | None = setting(
        None,
        "GiB for cached keys and values; null: on a CPU what is needed, up to 1; on a GPU what gpu_memory leaves",
        above=0,
    )
    eager: bool = setting(False, "no CUDA graphs: starts sooner, runs slower; on a CPU always")
    args: dict[str, Any] = setting({}, "further arguments of vllm.LLM, by their names there", path=True)


@dataclass(kw_only=True, slots=True)
class HttpConfig:
    """The HTTP client for vLLM servers."""

    connections: int = setting(64, "requests under way at one time, per server", low=1)
    timeout_s: float = setting(600.0, "longest time for a request and its whole answer, seconds", above=0)
    retries: int = setting(4, "further tries of a request that failed, on other servers where there are some", low=0)
    backoff_s: float = setting(0.5, "wait before the first further try, seconds; doubles with each", low=0)


@dataclass(kw_only=True, slots=True)
class ParityConfig:
    """Engine and trainer compared after every sync, by the log-probs of the engine's own samples."""

    prompts: int = setting(4, "prompts answered for it; 0 for no comparison", low=0)
    max_tokens: int = setting(16, "longest of those answers, tokens", low=1)
    warn: float = setting(0.02, "mean gap, nats per token, above which a warning is given", above=0)
    fail: float = setting(0.5, "gap of any one token, nats, above which the run stops", above=0)


@dataclass(kw_only=True, slots=True)
class VllmRolloutConfig(RolloutConfig):
    """Sampling with vLLM, in the training process."""

    dtype: str | None = setting(
        None, "dtype of the engine's weights; null for what the student computes in", choices=DTYPES
    )
    sleep: bool = setting(True, "on a GPU, give the engine's memory to the update while that runs")
    engine: VllmEngineConfig = field(default_factory=VllmEngineConfig)
    parity: ParityConfig = field(default_factory=ParityConfig)


@dataclass(kw_only=True, slots=True)
class VllmServerRolloutConfig(RolloutConfig):
    """Sampling with vLLM servers, started by the user."""

    urls: list[str] = setting(MISSING, "addresses of the servers, [http://HOST:PORT, …]")
    sync: str = setting(
        "file",
        "how weights reach the servers: a file both sides see, NCCL, or CUDA IPC",
        choices=("file", "nccl", "ipc"),
    )
    sync_dir: str | None = setting(
        None, "folder that trainer and servers share; null for this machine's memory", path=True
    )
    dtype: str | None = setting(
        None, "dtype weights are sent in; null for what the student computes in", choices=DTYPES
    )
    http: HttpConfig = field(default_factory=HttpConfig)
    parity: ParityConfig = field(default_factory=ParityConfig)


@dataclass(kw_only=True, slots=True)
class ScoringConfig:
    """How the teacher's log-probs are made, and which of the student's they are compared with."""

    student_logprobs: str = setting(
        "trainer", "student log-probs in the advantage: recomputed, or the engine's", choices=("trainer", "sampler")
    )


@dataclass(kw_only=True, slots=True)
class HfScoringConfig(ScoringConfig):
    """A teacher in transformers, in the training process."""

    batch_tokens: int | None = setting(
        None, "tokens scored at one time, padding included; null for 32768 on a GPU, 2048 on a CPU", low=1
    )


@dataclass(kw_only=True, slots=True)
class VllmScoringConfig(ScoringConfig):
    """A teacher in vLLM, in the training process. teacher.offload has it sleep between uses."""

    overlap: bool = setting(True, "score rollouts while others are still being written")
    engine: VllmEngineConfig = field(default_factory=lambda: VllmEngineConfig(batch_tokens=2048))


@dataclass(kw_only=True, slots=True)
class VllmServerScoringConfig(ScoringConfig):
    """A teacher in vLLM servers, started by the user. teacher.path still names it: its tokenizer is compared."""

    urls: list[str] = setting(MISSING, "addresses of the servers, [http://HOST:PORT, …]")
    served_as: str | None = setting(
        None, "what the servers call the teacher (root or id in /v1/models); null where it is teacher.path"
    )
    overlap: bool = setting(True, "score rollouts while others are still being written")
    http: HttpConfig = field(default_factory=HttpConfig)
