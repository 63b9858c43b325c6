"""A run, its student and teacher, and its problems."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from iwopd.setting import DTYPES, setting


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """Where a run goes and how long it lasts."""

    dir: str | None = setting(None, "folder of the run; default runs/<run.name>", path=True)
    name: str | None = setting(None, "name of the run; default the verb and the time it started")
    date: str | None = setting(
        None, "date, or date and time, that chat templates print, 2026-01-31; null for the run's start, also on resume"
    )
    steps: int = setting(50, "optimisation steps in all: rollout batches", low=0)
    tokens: int | None = setting(
        None,
        "end once this many response tokens were generated, however many steps that takes, and decay, anneal and grow "
        "by them; null: run.steps",
        low=1,
    )
    resume: bool = setting(False, "resume from the last whole checkpoint of run.dir, if there is one")
    save_every: int = setting(10, "steps between checkpoints; 0 for none but the last", low=0)
    keep: int = setting(2, "checkpoints to keep; 0 for all", low=0)
    deterministic: bool = setting(True, "on a GPU, only kernels that give the same bits at every run")
    device: str = setting(
        "auto",
        "where the student trains: auto takes a CUDA GPU if there is one; or cpu, cuda, cuda:1, mps",
    )
    samples: int = setting(4, "rollouts written to samples.jsonl at each evaluation", low=0)
    on_collapse: str = setting(
        "warn",
        "when responses stop ending: warn, with the likely cause; or stop as Ctrl-C does, with status 3; or ignore it",
        choices=("warn", "stop", "ignore"),
    )


@dataclass(kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters (peft) instead of full training."""

    rank: int = setting(0, "rank of the adapters; 0 trains all weights", low=0)
    alpha: int = setting(16, "scale of the adapters, divided by the rank", low=1)
    dropout: float = setting(
        0.0,
        "dropout in front of the adapters, share; only where gradients flow, at one more forward pass: never in A_t. "
        "Dropout that a model was published with is not applied",
        low=0,
        high=0.999,
    )
    targets: str = setting("all-linear", "peft's target modules: all-linear, or names separated by commas")


COMPILE = (
    "torch.compile of the decoder's layers: on a GPU a third less time and memory for an update, after a minute at the "
    "start; needs a C compiler"
)


@dataclass(kw_only=True, slots=True)
class StudentConfig:
    """The model that is trained."""

    path: str = setting(MISSING, "folder in HF format, hub name, or toy://VARIANT/student", path=True)
    revision: str | None = setting(None, "branch, tag or commit of a hub model")
    dtype: str = setting("float32", "dtype of the weights and of the optimiser's state", choices=DTYPES)
    attention: str = setting("auto", "transformers' attention implementation; auto: sdpa where the architecture has it")
    gradient_checkpointing: bool = setting(False, "recompute activations in backward: less memory, about 30 % slower")
    compile: bool = setting(False, COMPILE)
    trust_remote_code: bool = setting(False, "allow code shipped with a hub model to run")
    lora: LoraConfig = field(default_factory=LoraConfig)


SELF = "self"  # the path of a teacher that is the student itself; a folder of that name is ./self


@dataclass(kw_only=True, slots=True)
class ScorerConfig:
    """A model that only scores."""

    revision: str | None = setting(None, "branch, tag or commit of a hub model")
    dtype: str = setting("bfloat16", "dtype of the weights", choices=DTYPES)
    attention: str = setting("auto", "transformers' attention implementation; auto: sdpa where the architecture has it")
    device: str | None = setting(None, "where it computes with scoring=hf: cpu, cuda, cuda:1, mps; null for run.device")
    offload: bool = setting(False, "keep the weights in host memory between uses")
    compile: bool = setting(False, COMPILE)
    trust_remote_code: bool = setting(False, "allow code shipped with a hub model to run")


@dataclass(kw_only=True, slots=True)
class TeacherConfig(ScorerConfig):
    """The model that scores; of several teachers, the one for problems that name none."""

    path: str = setting(
        MISSING, "folder in HF format, hub name, toy://VARIANT/teacher, or self for the student itself", path=True
    )
    prompt_template: str | None = setting(
        None,
        "what the teacher is asked instead, as the user's turn: {prompt} stands for what the student is asked, {NAME} "
        "for a column of the row, {{NAME}} for {NAME} as it is. It scores the same responses. null: the same prompt",
    )
    weights: str = setting(
        "frozen",
        "of path=self: the student's before training, a moving average of them, or its current ones",
        choices=("frozen", "average", "current"),
    )
    decay: float = setting(0.99, "weights=average: what a step leaves of the average, share", low=0, high=1)
    name: str = setting("default", "what problems may call it, where there are several")
    urls: list[str] | None = setting(None, "its servers with scoring=vllm_server; null for scoring.urls")
    served_as: str | None = setting(
        None, "what its servers call it (root or id in /v1/models); null for scoring.served_as"
    )


@dataclass(kw_only=True, slots=True)
class BaseConfig(ScorerConfig):
    """The model that ExOPD (loss.exopd_lambda other than 1) starts from; computes in the training process."""

    path: str | None = setting(None, "folder in HF format or hub name; null for the student before training", path=True)


@dataclass(kw_only=True, slots=True)
class SourceConfig:
    """Where problems come from."""

    path: str | None = setting(
        MISSING, "local jsonl, json, csv or parquet file, folder of them, hub dataset, or toy://VARIANT", path=True
    )
    subset: str | None = setting(None, "configuration of a hub dataset")
    split: str = setting("train", "split of a hub dataset or of toy://")
    revision: str | None = setting(None, "branch, tag or commit of a hub dataset")
    filter: str | None = setting(
        None, "condition that kept rows fulfil, such as: difficulty >= 6 and topic != 'Algebra'"
    )
    limit: int | None = setting(None, "rows to take from the top of those kept; null for all", low=1)
    prompt_column: str = setting("prompt", "column with the problem: a text, or a list of chat messages")
    answer_column: str | None = setting(None, "column with the reference answer; null where none is needed")
    id_column: str | None = setting(None, "column with a unique id; null numbers the rows")
    template: str | None = setting(None, "the user's turn, where {prompt} stands for the problem; null for it alone")
    suffix: str | None = setting(None, "text put after every problem, within the user's turn")
    system: str | None = setting(None, "system message put before every problem")
    enable_thinking: bool | None = setting(None, "passed to the chat template: true lets Qwen3 think; null for false")


@dataclass(kw_only=True, slots=True)
class TrainingSourceConfig(SourceConfig):
    """Where problems to train on come from."""

    teacher_column: str | None = setting(None, "column with the name of the teacher that scores the answers")


@dataclass(kw_only=True, slots=True)
class MixedSourceConfig(TrainingSourceConfig):
    """One source of a mixture. Null for template, suffix, system and enable_thinking: as in `data`."""

    weight: float = setting(1.0, "share of every batch, in proportion to the other sources' weights", above=0)
    teacher: str | None = setting(None, "name of the teacher that scores the answers, where no column says so")


if TYPE_CHECKING:
    Teachers = dict[str, TeacherConfig]
    Sources = dict[str, MixedSourceConfig]
else:  # OmegaConf adds no part of an entry (+teachers.NAME.path=…) to a typed dictionary; `iwopd.launch` types them
    Teachers = Sources = dict[str, Any]


@dataclass(kw_only=True, slots=True)
class DataConfig(TrainingSourceConfig):
    """The prompts the student answers while it is trained."""

    batch_size: int = setting(1024, "prompts in a step's batch", low=1)
    max_prompt_tokens: int = setting(2048, "longest prompt allowed, tokens", low=1)
    overlong: str = setting("error", "a longer prompt is an error, or dropped and counted", choices=("error", "drop"))
    sources: Sources = setting({}, "several sources by name instead of one, each a MixedSourceConfig")
