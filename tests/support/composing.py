"""Configs as the command line composes them."""

import os
from copy import deepcopy
from functools import cache

from hydra import compose, initialize_config_dir

from iwopd.config import Config, register_schemas
from iwopd.launch import config_folder, typed
from support import compositions

REQUIRED = {
    ("rollout", "vllm_server"): ["rollout.urls=[http://localhost:8000]"],
    ("scoring", "vllm_server"): ["scoring.urls=[http://localhost:8000]"],  # what a preset leaves to the user
    ("student", "hf"): ["student.path=x"],
    ("teacher", "hf"): ["teacher.path=x"],
    ("teacher", "self"): ["teacher.prompt_template='{answer}'"],
    ("data", "file"): ["data.path=x"],
    ("benchmark", "file"): ["eval.benchmarks.file.path=x"],
    ("benchmark", "math_file"): ["eval.benchmarks.math_file.path=x"],
    ("weighting", "custom"): ["weighting.path=a:b"],
    ("weighting", "tip"): ["loss.signal=top_k"],
    ("weighting", "select_verify"): ["loss.signal=top_k"],
    ("experiment", "aime_235b"): ["rollout.urls=[http://localhost:8000]", "scoring.urls=[http://localhost:8001]"],
}


def composed(*overrides: str) -> Config:
    """The config of a command line; the same one is composed once, and everyone gets a copy."""
    around = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    return deepcopy(_composed(overrides, os.getcwd(), frozenset(around.items())))


@cache
def _composed(overrides: tuple[str, ...], folder: str, environment: frozenset[tuple[str, str]]) -> Config:
    compositions.keep()
    register_schemas()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return typed(compose("config", list(overrides)))
