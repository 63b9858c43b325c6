"""The config's schema: every field with its meaning, unit and range. Importing it loads neither torch nor transformers.

YAML under conf/ fills these dataclasses; `Config.__post_init__` (run by `OmegaConf.to_object`) checks every value and
reports all mistakes at once, each as one line with the key, the value, the reason and the fix.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from iwopd.errors import ConfigError


def setting(
    default: Any = MISSING,
    text: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
    fix: str | None = None,
) -> Any:
    """A config field: its default, what it is (with its unit), and the values it may have.

    Args:
        low, high: inclusive bounds.
        above: exclusive lower bound.
        choices: the only values allowed.
        fix: what to do about a wrong value, where the bounds alone do not say it.
    """
    about = {"text": text, "low": low, "high": high, "above": above, "choices": choices, "fix": fix}
    if isinstance(default, (list, dict)):
        kept: Any = default  # pyright: ignore[reportUnknownVariableType]
        return field(default_factory=lambda: kept.copy(), metadata=about)
    return field(default=default, metadata=about)


DTYPES = ("float32", "bfloat16")


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """Where a run goes and how long it lasts."""

    dir: str | None = setting(None, "folder of the run; default runs/<run.name>")
    name: str | None = setting(None, "name of the run; default the verb and the time it started")
    steps: int = setting(50, "optimisation steps in all: rollout batches", low=0)
    tokens: int | None = setting(
        None, "end once this many response tokens were generated, however many steps that takes; null: run.steps", low=1
    )
    resume: bool = setting(False, "go on from the last whole checkpoint of run.dir, if there is one")
    save_every: int = setting(10, "steps between checkpoints; 0 for none but the last", low=0)
    keep: int = setting(2, "checkpoints to keep; 0 for all", low=0)
    deterministic: bool = setting(True, "on a GPU, only kernels that give the same bits at every run")
    device: str = setting("auto", "where the student trains: auto takes a GPU if there is one, or cpu, cuda, cuda:1")
    samples: int = setting(4, "rollouts written to samples.jsonl at each evaluation", low=0)


@dataclass(kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters (peft) instead of full training."""

    rank: int = setting(0, "rank of the adapters; 0 trains all weights", low=0)
    alpha: int = setting(16, "scale of the adapters, divided by the rank", low=1)
    dropout: float = setting(0.0, "dropout in front of the adapters, share", low=0, high=0.999)
    targets: str = setting("all-linear", "peft's target modules: all-linear, or names separated by commas")


@dataclass(kw_only=True, slots=True)
class StudentConfig:
    """The model that is trained."""

    path: str = setting(MISSING, "folder in HF format, hub name, or toy://VARIANT/student")
    revision: str | None = setting(None, "branch, tag or commit of a hub model")
    dtype: str = setting("float32", "dtype of the weights and of the optimiser's state", choices=DTYPES)
    attention: str = setting("sdpa", "transformers' attention implementation")
    gradient_checkpointing: bool = setting(False, "recompute activations in backward: less memory, about 30 % slower")
    trust_remote_code: bool = setting(False, "allow code shipped with a hub model to run")
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass(kw_only=True, slots=True)
class TeacherConfig:
    """The model that scores."""

    path: str = setting(MISSING, "folder in HF format, hub name, or toy://VARIANT/teacher")
    revision: str | None = setting(None, "branch, tag or commit of a hub model")
    dtype: str = setting("bfloat16", "dtype of the weights", choices=DTYPES)
    attention: str = setting("sdpa", "transformers' attention implementation")
    offload: bool = setting(False, "keep the weights in host memory between uses")
    trust_remote_code: bool = setting(False, "allow code shipped with a hub model to run")


@dataclass(kw_only=True, slots=True)
class SourceConfig:
    """Where problems come from."""

    path: str = setting(MISSING, "local jsonl, json, csv or parquet file, hub dataset, or toy://VARIANT")
    subset: str | None = setting(None, "configuration of a hub dataset")
    split: str = setting("train", "split of a hub dataset or of toy://")
    prompt_column: str = setting("prompt", "column with the problem: a text, or a list of chat messages")
    answer_column: str | None = setting(None, "column with the reference answer; null where none is needed")
    id_column: str | None = setting(None, "column with a unique id; null numbers the rows")
    system: str | None = setting(None, "system message put before every problem")
    suffix: str = setting("", "text put after every problem, within the user's turn")
    limit: int | None = setting(None, "rows to take from the top; null for all", low=1)


@dataclass(kw_only=True, slots=True)
class DataConfig(SourceConfig):
    """The prompts the student answers while it is trained."""

    batch_size: int = setting(1024, "prompts in a step's batch", low=1)
    max_prompt_tokens: int = setting(2048, "longest prompt allowed, tokens", low=1)
    overlong: str = setting("error", "a longer prompt is an error, or dropped and counted", choices=("error", "drop"))


@dataclass(kw_only=True, slots=True)
class RolloutConfig:
    """How the student answers."""

    max_tokens: int = setting(16384, "longest response, tokens", low=1)
    temperature: float = setting(1.0, "sampling temperature; training needs a distribution, so above 0", above=0)
    top_p: float = setting(1.0, "nucleus: the most likely tokens that reach this probability", above=0, high=1)
    top_k: int = setting(0, "the most likely tokens only; 0 for all", low=0)
    n: int = setting(1, "responses per prompt", low=1)
    horizon: float | None = setting(
        None,
        "longest response while training: tokens, or below 1 a share of the mean whole response; null for max_tokens",
        above=0,
    )
    horizon_end: float | None = setting(
        None, "horizon at the last step, in the unit of horizon; null keeps it as it is", above=0
    )
    horizon_power: float = setting(5.0, "it grows with this power of the progress: above 1 late", above=0)


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
    args: dict[str, Any] = setting({}, "further arguments of vllm.LLM, by their names there")


@dataclass(kw_only=True, slots=True)
class HttpConfig:
    """How vLLM servers are spoken to."""

    connections: int = setting(64, "requests under way at one time, per server", low=1)
    timeout_s: float = setting(600.0, "wait for an answer, seconds", above=0)
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
    sync_dir: str | None = setting(None, "folder that trainer and servers share; null for this machine's memory")
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
    overlap: bool = setting(True, "score rollouts while others are still being written")
    http: HttpConfig = field(default_factory=HttpConfig)


@dataclass(kw_only=True, slots=True)
class WeightingConfig:
    """Which tokens count. Each scheme has a schema of its own, so a key of another scheme is an error."""

    scheme: str = setting(MISSING, "name of the scheme's formula; choose it with weighting=NAME")


@dataclass(kw_only=True, slots=True)
class UniformWeighting(WeightingConfig):
    """Every token alike: standard OPD."""


@dataclass(kw_only=True, slots=True)
class WindowWeighting(WeightingConfig):
    """Only a window of each response."""

    side: str = setting("first", "where the window lies", choices=("first", "last", "middle", "random"))
    fraction: float = setting(
        0.3, "share of the tokens kept, ceil(fraction · T)", above=0, high=1, fix="0.3 is the paper's window"
    )


@dataclass(kw_only=True, slots=True)
class IwWeighting(WeightingConfig):
    """Importance weights from the disagreement before a token; also reversed in time, and signed."""

    gamma: float = setting(0.5, "how much early tokens gain", low=0, fix="0 is uniform, the paper uses 0.5")


@dataclass(kw_only=True, slots=True)
class IwSurrogateWeighting(WeightingConfig):
    """Importance weights without the floor of 1."""


@dataclass(kw_only=True, slots=True)
class PrefixRatioWeighting(WeightingConfig):
    """The theory's raw prefix ratio r^α / Z."""

    alpha: float = setting(0.5, "power of the prefix ratio", above=0, high=1)
    gamma: float | None = setting(None, "null for the ratio alone, a number for 1 + gamma · ratio", low=0)


@dataclass(kw_only=True, slots=True)
class AnnealedPrefixWeighting(WeightingConfig):
    """The released code's prefix schemes: a prefix that grows over the training, boosted or alone."""

    start: float = setting(0.3, "share of the tokens in the prefix at the first step", above=0, high=1)
    end: float = setting(1.0, "share of the tokens in the prefix at the last step", above=0, high=1)
    anneal: str = setting("cosine", "shape of the growth", choices=("cosine", "linear"))


@dataclass(kw_only=True, slots=True)
class PrefixBoostWeighting(AnnealedPrefixWeighting):
    """A growing prefix weighted more than the rest."""

    boost: float = setting(1.5, "weight of the prefix; the rest has 1", above=0)


@dataclass(kw_only=True, slots=True)
class CustomWeighting(WeightingConfig):
    """A scheme of the user's own."""

    path: str = setting(MISSING, "pkg.module:function, from a WeightInput to weights [batch, time]")
    needs_batch: bool = setting(False, "the function must see the whole batch at once (one more student pass)")


@dataclass(kw_only=True, slots=True)
class LossConfig:
    """What is minimised."""

    kind: str = setting(
        "policy_gradient",
        "clipped sampled-token policy gradient, or full-vocabulary reverse KL",
        choices=("policy_gradient", "reverse_kl"),
    )
    normalize: str = setting(
        "kept", "the mean is over tokens of non-zero weight, all, or sequences", choices=("kept", "all", "sequence")
    )
    clip_low: float = setting(0.2, "the ratio is clipped below 1 − clip_low", low=0, high=1)
    clip_high: float = setting(0.2, "the ratio is clipped above 1 + clip_high", low=0)
    dual_clip: float = setting(3.0, "where A < 0, the loss is at most dual_clip · |A|", above=1)
    importance_cap: float | None = setting(
        5.0, "cap of the sampler-to-trainer importance ratio; null for no correction", above=0
    )


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """AdamW and how a batch goes through it."""

    lr: float = setting(1e-5, "peak learning rate", above=0)
    weight_decay: float = setting(0.01, "decoupled weight decay", low=0)
    betas: list[float] = setting([0.9, 0.999], "Adam's decay rates of the first and second moment")
    eps: float = setting(1e-8, "Adam's denominator term", above=0)
    grad_clip: float | None = setting(1.0, "largest gradient norm; null for no clipping", above=0)
    schedule: str = setting("constant", "after the warm-up", choices=("constant", "linear", "cosine"))
    warmup_steps: int = setting(0, "optimiser steps of linear warm-up", low=0)
    final_lr: float = setting(0.0, "share of lr that linear and cosine end at", low=0, high=1)
    micro_batch_tokens: int = setting(32768, "tokens per forward and backward, padding included", low=1)
    updates_per_batch: int = setting(1, "optimiser steps per rollout batch, each on an equal share of it", low=1)
    autocast: bool = setting(False, "bfloat16 autocast in forward; weights keep student.dtype")


@dataclass(kw_only=True, slots=True)
class BenchmarkConfig(SourceConfig):
    """Problems with answers to be evaluated on."""

    split: str = setting("test", "split of a hub dataset or of toy://")
    answer_column: str | None = setting("answer", "column with the reference answer")
    grader: str = setting("exact", "how an answer is compared", choices=("exact",))
    answer_pattern: str | None = setting(None, "regular expression whose first group is the answer; null: all the text")


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """How accuracy is measured."""

    every: int = setting(10, "steps between evaluations; 0 for none but the first and last", low=0)
    k: int = setting(1, "mean@k and pass@k", low=1)
    n: int | None = setting(None, "samples per problem, at least k; null for k", low=1)
    temperature: float = setting(1.0, "sampling temperature; 0 is greedy", low=0)
    top_p: float = setting(1.0, "nucleus", above=0, high=1)
    top_k: int = setting(0, "the most likely tokens only; 0 for all", low=0)
    max_tokens: int | None = setting(None, "longest response, tokens; null for rollout.max_tokens", low=1)
    greedy: bool = setting(True, "also the accuracy of one greedy answer per problem")
    benchmarks: dict[str, BenchmarkConfig] = field(default_factory=dict[str, BenchmarkConfig])
    model: str | None = setting(None, "model that `iwopd eval` measures: a folder, hub name or toy://VARIANT/ROLE")


@dataclass(kw_only=True, slots=True)
class DiagnoseConfig:
    """What `iwopd diagnose` measures; its prompts are those of a benchmark, which has answers and a grader."""

    run: str | None = setting(None, "training run whose kept students are diagnosed; null for student.path alone")
    benchmark: str | None = setting(None, "which of eval.benchmarks gives the prompts; null for the first")
    prompts: int = setting(128, "prompts answered, rollout.n times each", low=1)
    continuations: int = setting(
        128, "of these, how many are continued from their answers' prefixes; 0 for none", low=0
    )
    top_k: int = setting(10, "most likely tokens whose overlap is measured", low=1)
    examples: int = setting(4, "example trajectories of the prefix log-ratio", low=0)


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    """Where metrics go besides metrics.jsonl; this one: nowhere."""


@dataclass(kw_only=True, slots=True)
class WandbTracking(TrackingConfig):
    """Weights & Biases."""

    project: str = setting("iwopd", "wandb project")
    entity: str | None = setting(None, "wandb team or user")
    group: str | None = setting(None, "wandb group")
    mode: str = setting("online", "wandb mode", choices=("online", "offline", "disabled"))


@dataclass(kw_only=True, slots=True)
class AblateConfig:
    """What `iwopd ablate` compares."""

    arms: list[Any] | None = setting(
        None, "weightings, or {name: …, KEY: VALUE} of any settings; null: uniform, first30, last30, iw"
    )
    seeds: Any = setting(5, "seeds of every arm: a list, or their number, counted from 1")
    baseline: str = setting("uniform", "the arm that the others are compared with")
    match: str = setting("steps", "what all arms have equal: steps, or tokens generated", choices=("steps", "tokens"))
    early: int = setting(10, "step of the early figure: the last evaluation up to it counts", low=1)
    workers: int | None = setting(None, "runs at one time; null for one per CPU core, or one on a GPU", low=1)


@dataclass(kw_only=True, slots=True)
class Config:
    """The root of every verb's config."""

    seed: int = setting(42, "seed of prompts, sampling and dropout", low=0, high=2**63 - 1)
    run: RunConfig = field(default_factory=RunConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = MISSING
    scoring: ScoringConfig = MISSING
    weighting: WeightingConfig = MISSING
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    diagnose: DiagnoseConfig = field(default_factory=DiagnoseConfig)
    ablate: AblateConfig = field(default_factory=AblateConfig)

    def __post_init__(self) -> None:
        problems = [*_field_problems(self), *_cross_field_problems(self)]
        if problems:
            raise ConfigError(*problems)


def _field_problems(section: Any, prefix: str = "") -> Iterator[str]:
    for entry in dataclasses.fields(section):
        value, key = getattr(section, entry.name), prefix + entry.name
        if dataclasses.is_dataclass(value):
            yield from _field_problems(value, key + ".")
        elif isinstance(value, dict):
            for name, item in value.items():  # pyright: ignore[reportUnknownVariableType]
                if isinstance(item, BenchmarkConfig):
                    yield from _field_problems(item, f"{key}.{name}.")
        elif value is not None and entry.metadata:
            problem = _value_problem(value, entry.metadata)
            if problem:
                yield f"{key}={value}: {problem}"


def _value_problem(value: Any, about: Any) -> str | None:
    if about["choices"] and value not in about["choices"]:
        listed: tuple[str, ...] = about["choices"]
        near = get_close_matches(str(value), listed, n=1, cutoff=0.5)
        choices = ", ".join(listed)
        return f"not a choice; {f'did you mean {near[0]}? ' if near else ''}choose one of {choices}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    low, high, above = about["low"], about["high"], about["above"]
    fits = (low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)
    if fits and math.isfinite(value):
        return None
    bounds = [
        *([f"at least {low:g}"] if low is not None else []),
        *([f"above {above:g}"] if above is not None else []),
        *([f"at most {high:g}"] if high is not None else []),
    ]
    wanted = " and ".join(bounds) or "finite"
    return f"must be {wanted}; {about['fix'] or f'set a finite number {wanted}'}"


def _cross_field_problems(config: Config) -> Iterator[str]:
    optim, data, evaluation = config.optim, config.data, config.eval
    if len(optim.betas) != 2 or not all(0 <= beta < 1 for beta in optim.betas):
        yield f"optim.betas={optim.betas}: must be two numbers from 0 up to but not 1; AdamW's default is [0.9,0.999]"
    if data.batch_size % optim.updates_per_batch:
        yield (
            f"optim.updates_per_batch={optim.updates_per_batch}: does not divide data.batch_size={data.batch_size}; "
            "choose a divisor of it"
        )
    if evaluation.n is not None and evaluation.k > evaluation.n:
        yield (
            f"eval.k={evaluation.k}: larger than eval.n={evaluation.n}, and pass@k needs k samples; "
            f"raise eval.n or set eval.k={evaluation.n}"
        )
    if config.run.device not in ("auto", "cpu") and not _is_cuda(config.run.device):
        yield f"run.device={config.run.device}: not a device; use auto, cpu, cuda or cuda:N"
    if config.loss.kind == "reverse_kl" and config.scoring.student_logprobs == "sampler":
        yield (
            "scoring.student_logprobs=sampler: loss.kind=reverse_kl compares whole distributions, which the sampler "
            "does not report; use scoring.student_logprobs=trainer"
        )
    yield from _engine_problems(config)
    yield from _horizon_problems(config.rollout)
    yield from _scheme_problems(config.weighting)


def _engine_problems(config: Config) -> Iterator[str]:
    rollout, scoring = config.rollout, config.scoring
    if config.loss.kind == "reverse_kl" and not isinstance(scoring, HfScoringConfig):
        yield (
            "loss.kind=reverse_kl: compares whole distributions, and vLLM reports the log-probs of single tokens; "
            "use scoring=hf or loss=policy_gradient"
        )
    changed = [
        f"rollout.{name}={value}"
        for name, value, neutral in (
            ("temperature", rollout.temperature, 1.0),
            ("top_p", rollout.top_p, 1.0),
            ("top_k", rollout.top_k, 0),
        )
        if value != neutral
    ]
    if changed and config.loss.importance_cap is None:
        yield (
            f"{', '.join(changed)}: samples another distribution than the student's, which only the importance "
            "correction makes good; set loss.importance_cap=5.0, or sample with temperature 1, top_p 1, top_k 0"
        )
    if changed and scoring.student_logprobs == "sampler":
        yield (
            f"{', '.join(changed)}: the sampler's log-probs are of the changed distribution, not the student's, so "
            "A_t would be wrong; use scoring.student_logprobs=trainer"
        )
    for key, section in (("rollout", rollout), ("scoring", scoring)):
        if isinstance(section, (VllmServerRolloutConfig, VllmServerScoringConfig)):
            yield from _url_problems(f"{key}.urls", section.urls)


def _url_problems(key: str, urls: list[str]) -> Iterator[str]:
    if not urls:
        yield f"{key}=[]: names no server; give {key}=[http://HOST:PORT]"
    for url in urls:
        if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", url):
            yield f"{key}={url}: not an address; write {key}=[http://HOST:PORT]"
    for url in sorted({url for url in urls if urls.count(url) > 1}):
        yield f"{key}={url}: is there twice; name each server once"


def _horizon_problems(rollout: RolloutConfig) -> Iterator[str]:
    horizon, end = rollout.horizon, rollout.horizon_end
    if horizon is not None and horizon > 1 and horizon % 1:
        yield (
            f"rollout.horizon={horizon}: neither a share below 1 nor a whole number of tokens; "
            f"use {math.ceil(horizon)} tokens, or a share such as 0.3"
        )
    if end is not None and horizon is None:
        yield f"rollout.horizon_end={end}: there is no horizon to grow from; set rollout.horizon too"
    elif end is not None and horizon is not None and end < horizon:
        yield f"rollout.horizon_end={end}: below rollout.horizon={horizon}; raise it, or leave it out"


def _scheme_problems(weighting: WeightingConfig) -> Iterator[str]:
    allowed = SCHEMES[type(weighting)]
    if weighting.scheme not in allowed:
        yield (
            f"weighting.scheme={weighting.scheme}: this schema computes {' or '.join(allowed)}; "
            "choose another scheme by its preset, weighting=NAME"
        )
    if isinstance(weighting, CustomWeighting) and weighting.path.count(":") != 1:
        yield f"weighting.path={weighting.path}: not of the form pkg.module:function; name a function that way"


def _is_cuda(device: str) -> bool:
    return re.fullmatch(r"cuda(:(0|[1-9][0-9]?))?", device) is not None


SCHEMES: dict[type[WeightingConfig], tuple[str, ...]] = {
    UniformWeighting: ("uniform",),
    WindowWeighting: ("window",),
    IwWeighting: ("iw", "iw_reversed", "iw_signed"),
    IwSurrogateWeighting: ("iw_surrogate",),
    PrefixRatioWeighting: ("prefix_ratio",),
    AnnealedPrefixWeighting: ("prefix_mask",),
    PrefixBoostWeighting: ("prefix_boost",),
    CustomWeighting: ("custom",),
}

# Presets name their schema as /schema/GROUP/NAME, a group of its own, so that a wrong choice of a preset lists presets.
SCHEMAS: dict[str, dict[str, type]] = {
    "schema": {"root": Config},
    "schema/rollout": {"hf": HfRolloutConfig, "vllm": VllmRolloutConfig, "vllm_server": VllmServerRolloutConfig},
    "schema/scoring": {"hf": HfScoringConfig, "vllm": VllmScoringConfig, "vllm_server": VllmServerScoringConfig},
    "schema/weighting": {
        "uniform": UniformWeighting,
        "window": WindowWeighting,
        "iw": IwWeighting,
        "iw_surrogate": IwSurrogateWeighting,
        "prefix_ratio": PrefixRatioWeighting,
        "prefix_mask": AnnealedPrefixWeighting,
        "prefix_boost": PrefixBoostWeighting,
        "custom": CustomWeighting,
    },
    "schema/tracking": {"none": TrackingConfig, "wandb": WandbTracking},
}


def register_schemas() -> None:
    """Make the schemas known to Hydra."""
    store = ConfigStore.instance()
    for group, schemas in SCHEMAS.items():
        for name, schema in schemas.items():
            store.store(group=group, name=name, node=schema)
