"""The one place that turns config into objects. Importing it loads torch and transformers: see `iwopd.preflight` for
what can be known without."""

from iwopd.assembly.engines import base, engine, teacher, teacher_engine, teachers
from iwopd.assembly.evaluation import benchmarks
from iwopd.assembly.inputs import (
    check_scorer_tokenizer,
    longest_taught,
    print_date,
    prompt_stream,
    student_tokenizer,
    tokenizer,
)
from iwopd.assembly.model_configs import check_context, check_vocabulary, model_config, stop_ids
from iwopd.assembly.models import device, language_model, student, student_model
from iwopd.assembly.settings import eval_sampling, gap_watch, parity, sampling
from iwopd.assembly.vllm import Served, engine_dtype, uses_vllm

__all__ = [
    "Served",
    "base",
    "benchmarks",
    "check_context",
    "check_scorer_tokenizer",
    "check_vocabulary",
    "device",
    "engine",
    "engine_dtype",
    "eval_sampling",
    "gap_watch",
    "language_model",
    "longest_taught",
    "model_config",
    "parity",
    "print_date",
    "prompt_stream",
    "sampling",
    "stop_ids",
    "student",
    "student_model",
    "student_tokenizer",
    "teacher",
    "teacher_engine",
    "teachers",
    "tokenizer",
    "uses_vllm",
]
