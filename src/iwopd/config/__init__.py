"""The config's schema: every field with its meaning, unit and range. Importing it loads neither torch nor transformers.

YAML under conf/ fills these dataclasses; `Config.__post_init__` (run by `OmegaConf.to_object`) checks every value and
reports all mistakes at once, each as one line with the key, the value, the reason and the fix.
"""

from dataclasses import dataclass, field
from functools import cache

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from iwopd.config import checks, named, paths
from iwopd.config.doctor import DoctorConfig
from iwopd.config.engines import (
    HfRolloutConfig,
    HfScoringConfig,
    HttpConfig,
    ParityConfig,
    RolloutConfig,
    ScoringConfig,
    VllmEngineConfig,
    VllmRolloutConfig,
    VllmScoringConfig,
    VllmServerRolloutConfig,
    VllmServerScoringConfig,
)
from iwopd.config.models import (
    BaseConfig,
    DataConfig,
    LoraConfig,
    MixedSourceConfig,
    RunConfig,
    ScorerConfig,
    SourceConfig,
    StudentConfig,
    TeacherConfig,
    Teachers,
    TrainingSourceConfig,
)
from iwopd.config.objective import describe_objective
from iwopd.config.parallel import FsdpConfig, ParallelConfig
from iwopd.config.push import PushConfig
from iwopd.config.reward import RewardConfig, graded_as
from iwopd.config.training import OptimConfig
from iwopd.config.verbs import (
    AblateConfig,
    BenchmarkConfig,
    DiagnoseConfig,
    EvalConfig,
    ReportConfig,
)
from iwopd.errors import ConfigError
from iwopd.losses import LOSSES, Loss
from iwopd.setting import setting
from iwopd.tracking import TrackingConfig
from iwopd.weighting import SCHEMES, Weighting

__all__ = [
    "ENTRIES",
    "AblateConfig",
    "BaseConfig",
    "BenchmarkConfig",
    "Config",
    "DataConfig",
    "DiagnoseConfig",
    "DoctorConfig",
    "EvalConfig",
    "FsdpConfig",
    "HfRolloutConfig",
    "HfScoringConfig",
    "HttpConfig",
    "LoraConfig",
    "MixedSourceConfig",
    "OptimConfig",
    "ParallelConfig",
    "ParityConfig",
    "PushConfig",
    "ReportConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "ScorerConfig",
    "ScoringConfig",
    "SourceConfig",
    "StudentConfig",
    "TeacherConfig",
    "TrackingConfig",
    "TrainingSourceConfig",
    "VllmEngineConfig",
    "VllmRolloutConfig",
    "VllmScoringConfig",
    "VllmServerRolloutConfig",
    "VllmServerScoringConfig",
    "describe_objective",
    "graded_as",
    "register_schemas",
]


@dataclass(kw_only=True, slots=True)
class Config:
    """The root of every verb's config."""

    seed: int = setting(42, "seed of prompts, sampling and dropout", low=0, high=2**63 - 1)
    run: RunConfig = field(default_factory=RunConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    teachers: Teachers = setting({}, "further teachers by name, each a TeacherConfig")
    base: BaseConfig = field(default_factory=BaseConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = MISSING
    scoring: ScoringConfig = MISSING
    weighting: Weighting = MISSING
    loss: Loss = field(default_factory=Loss)
    reward: RewardConfig = field(default_factory=RewardConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    diagnose: DiagnoseConfig = field(default_factory=DiagnoseConfig)
    ablate: AblateConfig = field(default_factory=AblateConfig)
    push: PushConfig = field(default_factory=PushConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    doctor: DoctorConfig = field(default_factory=DoctorConfig)
    # As they were written; no setting itself, see `iwopd.config.stored`.
    interpolations: dict[str, str] = field(default_factory=dict[str, str], metadata={"omegaconf_ignore": True})

    def __post_init__(self) -> None:
        problems = [*paths.expand(self), *named.settle(self), *checks.problems(self)]
        if problems:
            raise ConfigError(*problems)


# Presets name their schema as /schema/GROUP/NAME, a group of its own, so that a wrong choice of a preset lists presets.
SCHEMAS: dict[str, dict[str, type]] = {
    "schema": {"root": Config},
    "schema/rollout": {"hf": HfRolloutConfig, "vllm": VllmRolloutConfig, "vllm_server": VllmServerRolloutConfig},
    "schema/scoring": {"hf": HfScoringConfig, "vllm": VllmScoringConfig, "vllm_server": VllmServerScoringConfig},
    "schema/weighting": {**SCHEMES},
    "schema/loss": {**LOSSES},
    "schema/parallel": {"single": ParallelConfig, "fsdp": FsdpConfig},
}


# Dictionaries whose entries have a schema: entries come from the command line too (+teachers.coder.path=…), where
# OmegaConf would not type them.
ENTRIES: dict[str, type] = {"data.sources": MixedSourceConfig, "teachers": TeacherConfig}


@cache
def register_schemas() -> None:
    """Make the schemas known to Hydra."""
    store = ConfigStore.instance()
    for group, schemas in SCHEMAS.items():
        for name, schema in schemas.items():
            store.store(group=group, name=name, node=schema)
