"""A task's reward beside the teacher: graded answers, each against the others to its prompt."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from iwopd.evaluation.evaluate import Benchmark, Decode, grade
from iwopd.evaluation.grading import Grader
from iwopd.numerics import group_advantages
from iwopd.types import Prompt, ScoredRollout


class TaskReward:
    """Grades training rollouts.

    Args:
        weight: c of A_t + c · (r − mean)/sd.
        samples: responses per prompt.
        grader: its processes stay between steps.
        decode: from token ids to text, as in evaluations.
    """

    def __init__(self, weight: float, samples: int, grader: Grader, decode: Decode):
        self.weight, self.samples, self.grader, self.decode = weight, samples, grader, decode

    def __call__(
        self, prompts: Sequence[Prompt], scored: Sequence[ScoredRollout]
    ) -> tuple[list[ScoredRollout], dict[str, float]]:
        """The records with their reward, and the metric ``train/reward_mean``, the share that is right.

        Args:
            scored: `samples` of each prompt, prompt by prompt.
        """
        rollouts, problems = [each.rollout for each in scored], Benchmark("reward", list(prompts), self.grader)
        correct = [item.correct for item in grade(problems, rollouts, self.decode)]
        rewards = torch.tensor(correct, dtype=torch.float64)
        added = self.weight * group_advantages(rewards.view(-1, self.samples)).flatten()
        records = [replace(each, reward=value) for each, value in zip(scored, added.tolist(), strict=True)]
        return records, {"train/reward_mean": rewards.mean().item()}
