"""What records of real stages keep in memory, and that the whole way of a batch can be measured without a model."""

import sys

import numpy as np
import torch
from support.paths import REPOSITORY

from iwopd.rollout.base import Sampling
from iwopd.rollout.hf import HfEngine
from iwopd.scoring.hf import HfTeacher
from iwopd.training.score import score
from iwopd.types import Prompt

sys.path.insert(0, str(REPOSITORY / "scripts"))

from bench_records import bench, record_bytes


def test_records_keep_their_own_numbers_and_nothing_of_the_batches_they_come_from(tiny_student) -> None:
    """Twelve bytes a token, without base and trainer log-probs; a view would keep a whole padded batch alive."""
    student = tiny_student(0)
    prompts = [Prompt(str(index), [1 + index, 2, 3], "") for index in range(4)]
    rollouts = HfEngine(student.lm, [7]).generate(prompts, Sampling(n=2, max_tokens=30), seed=1, stream=0)
    assert len({len(rollout.response_ids) for rollout in rollouts}) > 1
    teacher = HfTeacher(student.lm, torch.device("cpu"))
    for record in score(teacher, rollouts, lambda length: (0, length), student=student, base=teacher):
        rollout, count = record.rollout, record.stop
        assert record_bytes(record) == 4 * len(rollout.prompt_ids) + 12 * count
        arrays = (rollout.prompt_ids, rollout.response_ids, rollout.sampler_logprobs)
        arrays += (record.teacher_logprobs, record.trainer_logprobs, record.base_logprobs)
        assert all(isinstance(array, np.ndarray) and array.base is None for array in arrays)


def test_a_batch_of_1024_responses_of_16384_tokens_takes_less_than_400_mb() -> None:
    """By what a smaller one takes for each token."""
    found = bench(8, 512)
    assert found["record_bytes"] / found["tokens"] * 1024 * 16_384 < 400e6
    assert found["tokens"] == 8 * 512
    assert set(found["stages"]) == {"records", "score", "micro-batches", "whole batch"}
    assert found["metrics"]["train/response_length"] == 512
    assert 0.5 < found["metrics"]["train/weight_mean"] < 2
