"""The one place that turns config into objects. Heavy imports happen inside its functions."""

from iwopd.build.inputs import (
    Checked,
    Stage,
    benchmark_rows,
    benchmarks,
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
    student,
    student_model,
    teacher,
    teacher_engine,
)
from iwopd.build.settings import eval_sampling, loss_settings, mirrors, sampling
from iwopd.build.weighting import schemes, weighting

__all__ = [
    "Checked",
    "Stage",
    "benchmark_rows",
    "benchmarks",
    "check_context",
    "check_inputs",
    "check_path",
    "check_teacher_tokenizer",
    "check_vocabulary",
    "device",
    "engine",
    "eval_sampling",
    "language_model",
    "loss_settings",
    "mirrors",
    "model_folders",
    "prompt_stream",
    "sampling",
    "schemes",
    "student",
    "student_model",
    "student_tokenizer",
    "teacher",
    "teacher_engine",
    "tokenizer",
    "weighting",
]
