"""What a model's config.json and tokenizer say, before its weights load."""

import logging
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.utils.peft_utils import find_adapter_config_file

from iwopd.config.models import ScorerConfig, StudentConfig
from iwopd.errors import ConfigError, ModelError, loading_error
from iwopd.losses import Loss
from iwopd.models.rope import context_limit
from iwopd.preflight.models import adapters_refused
from iwopd.types import Tokenizer

log = logging.getLogger(__name__)


def stop_ids(key: str, section: StudentConfig | ScorerConfig, folder: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """End-of-sequence ids: the tokenizer's, and those the model's generation config adds.

    Ids that the model has no row for can never be sampled, and engines refuse them: they are left out, with a warning.
    """
    try:
        generation = GenerationConfig.from_pretrained(folder, revision=section.revision or "main")
        more: Any = generation.eos_token_id
    except OSError:  # a model need not have one; then its own config decides
        more = getattr(model_config(key, section, folder), "eos_token_id", None)
    listed = [token for token in (more if isinstance(more, list) else [more]) if token is not None]
    rows = getattr(model_config(key, section, folder), "vocab_size", None) or len(tokenizer)
    beyond = [token for token in listed if not 0 <= token < rows]
    if beyond:
        log.warning(
            "%s=%s: its generation config ends responses with ids %s, and the model has %d rows; they are left out",
            key,
            folder,
            ", ".join(map(str, beyond)),
            rows,
        )
    return tuple(sorted({tokenizer.eos_token_id, *(token for token in listed if token not in beyond)}))


def model_config(key: str, section: StudentConfig | ScorerConfig, folder: str) -> PreTrainedConfig:
    """The text part of a model's config.json: what must be known before it loads, or of one served elsewhere.

    Raises:
        ModelError: it cannot be read.
    """
    return whole_config(key, section, folder).get_text_config(decoder=True)


def whole_config(key: str, section: StudentConfig | ScorerConfig, folder: str) -> PreTrainedConfig:
    """transformers' config of a model. See `model_config`.

    Raises:
        ModelError: a model of the hub comes as adapters; for a folder `check_model_folder` has raised it before.
    """
    if not Path(folder).is_dir():
        file = find_adapter_config_file(folder, revision=section.revision or "main")
        if file is not None:
            raise ModelError(adapters_refused(f"{key}={folder}", Path(file)))
    try:
        return AutoConfig.from_pretrained(
            folder, revision=section.revision or "main", trust_remote_code=section.trust_remote_code
        )
    except Exception as error:  # transformers raises a dozen types here
        raise loading_error(key, folder, "its config.json cannot be read", error, "check it") from error


def check_vocabulary(name: str, vocabulary: int, path: str, tokenizer: Tokenizer) -> None:
    """Every id of the tokenizer must have a row in the model.

    Raises:
        ModelError: it has fewer.
    """
    if vocabulary < len(tokenizer):
        raise ModelError(
            f"{name}.path={path}: the model has {vocabulary} rows for a tokenizer of {len(tokenizer)} tokens; "
            "resize its embeddings, or name another"
        )


def check_top_k(loss: Loss, key: str, vocabulary: int) -> None:
    """No more of the likeliest tokens are asked for than there are.

    Args:
        key: the scorer's section, for messages.

    Raises:
        ConfigError: there are fewer.
    """
    gated = loss.entropy_gate_top_k if loss.entropy_gate is not None else 0
    for name, k, instead in (
        ("top_k", loss.teacher_signal.k, ", or take all of them with loss.signal=full"),
        ("entropy_gate_top_k", gated, ""),
    ):
        if k > vocabulary:
            said = f"the vocabulary of {key} has {vocabulary} tokens"
            raise ConfigError(f"loss.{name}={k}: {said}; lower it{instead}")


def check_context(name: str, model_config: PreTrainedConfig, key: str, longest_prompt: int, max_tokens: int) -> None:
    """Prompt and response must fit in what the model can attend to.

    Args:
        name: student or teacher, for messages.

    Raises:
        ConfigError: says by how much they do not.
    """
    context = context_limit(model_config)
    if context is not None and longest_prompt + max_tokens > context:
        raise ConfigError(
            f"{key}={max_tokens}: with a prompt of {longest_prompt} tokens more than the {context} the {name} can "
            f"attend to; set it to {max(1, context - longest_prompt)} or less"
        )
