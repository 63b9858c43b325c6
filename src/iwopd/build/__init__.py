"""The one place that turns config into objects. Heavy imports happen inside its functions."""

from iwopd.build.evaluation import benchmark_rows, benchmarks
from iwopd.build.inputs import (
    Checked,
    Stage,
    check_inputs,
    check_path,
    check_teacher_tokenizer,
    model_folders,
    prompt_stream,
    student_tokenizer,
    tokenizer,
)
from iwopd.build.models import (
    check_context,
    check_vocabulary,
    device,
    engine,
    language_model,
    model_config,
    stop_ids,
    student,
    student_model,
    teacher,
    teacher_engine,
)
from iwopd.build.settings import eval_sampling, loss_settings, mirrors, parity, sampling
from iwopd.build.vllm import Served, check_vllm, uses_vllm
from iwopd.build.weighting import schemes, weighting

__all__ = [
    "Checked",
    "Served",
    "Stage",
    "benchmark_rows",
    "benchmarks",
    "check_context",
    "check_inputs",
    "check_path",
    "check_teacher_tokenizer",
    "check_vllm",
    "check_vocabulary",
    "device",
    "engine",
    "eval_sampling",
    "language_model",
    "loss_settings",
    "mirrors",
    "model_config",
    "model_folders",
    "parity",
    "prompt_stream",
    "sampling",
    "schemes",
    "stop_ids",
    "student",
    "student_model",
    "student_tokenizer",
    "teacher",
    "teacher_engine",
    "tokenizer",
    "uses_vllm",
    "weighting",
]
