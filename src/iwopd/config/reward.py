"""A task's reward beside the teacher."""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from iwopd.config.models import SourceConfig
from iwopd.config.verbs import GRADERS, BenchmarkConfig
from iwopd.setting import setting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iwopd.config import Config


@dataclass(kw_only=True, slots=True)
class RewardConfig:
    """A reward of 1 for a right answer and 0 for a wrong one, added to the teacher's A_t (KDRL)."""

    weight: float = setting(
        0.0,
        "c of A_t + c · (r − mean)/sd, over the rollout.n answers to a prompt; 0 for no reward. The training problems' "
        "answers stand in data.answer_column",
        low=0,
    )
    grader: str | None = setting(
        None,
        "how an answer is compared, as in evaluation; null: as the first benchmark does, with its patterns",
        choices=GRADERS,
    )
    answer_pattern: str | None = setting(
        None, "regular expression whose first group is the answer; null: all the text, or as that benchmark"
    )
    reference_pattern: str | None = setting(
        None, "regular expression whose first group is the reference within the answer column; null: likewise"
    )


def graded_as(config: "Config", source: SourceConfig) -> BenchmarkConfig:
    """A source of training problems as a benchmark: with answers, and how they are graded."""
    reward, first = config.reward, next(iter(config.eval.benchmarks.values()), BenchmarkConfig(path=None))
    chosen = first if reward.grader is None else BenchmarkConfig(path=None, grader=reward.grader)
    kept = {entry.name: getattr(source, entry.name) for entry in fields(SourceConfig)}
    return replace(
        chosen,
        **kept,
        answer_pattern=reward.answer_pattern or chosen.answer_pattern,
        reference_pattern=reward.reference_pattern or chosen.reference_pattern,
    )


def problems(config: "Config") -> "Iterator[str]":
    """What does not go with a reward, one line each."""
    said, data = f"reward.weight={config.reward.weight:g}", config.data
    if not config.reward.weight:
        return
    if config.loss.over_vocabulary:
        yield (
            f"{said}: is added to the A_t of sampled tokens, and loss.kind={config.loss.kind} has none; use "
            "loss=policy_gradient"
        )
    if config.rollout.n < 2:
        yield (
            f"{said}: is measured against the other answers to a prompt, and rollout.n={config.rollout.n}; set "
            "rollout.n=4, say"
        )
    if config.reward.grader is None and not config.eval.benchmarks:
        yield f"{said}: there is no benchmark whose grader to use; set reward.grader to one of {', '.join(GRADERS)}"
        return
    keys = {f"data.sources.{name}": each for name, each in data.sources.items()} or {"data": data}
    for key, source in keys.items():
        if source.answer_column is None and graded_as(config, source).grader != "code":
            yield f"{said}: needs answers to the training problems; name their column with {key}.answer_column"
