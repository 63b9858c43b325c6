"""Student and other language models, on their devices."""

import logging
import warnings
from pathlib import Path
from pickle import PickleError
from typing import TYPE_CHECKING

import torch
from torch.random import fork_rng, manual_seed
from transformers import PreTrainedModel

from iwopd.assembly.parallel import shard_student
from iwopd.config import Config, FsdpConfig
from iwopd.config.models import ScorerConfig, StudentConfig
from iwopd.errors import ConfigError, RunFolderError, first_line
from iwopd.models import rope
from iwopd.models.compiled import compile_layers
from iwopd.models.language_model import LanguageModel, load_pretrained
from iwopd.models.student import Student
from iwopd.parallel import world

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)


def device(name: str) -> torch.device:
    """run.device as torch's.

    Raises:
        ConfigError: the GPU it names is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and world().size > 1:
        name = f"cuda:{torch.cuda.current_device()}"  # that of its LOCAL_RANK
    return torch_device("run.device", name)


def torch_device(key: str, name: str) -> torch.device:
    chosen = torch.device(name)
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"{key}=mps: PyTorch finds no GPU of Apple's here; use {key}=cpu")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"{key}={name}: this machine has {torch.cuda.device_count()} CUDA devices; use auto or cpu")
    return chosen


def language_model(
    key: str,
    section: StudentConfig | ScorerConfig,
    folder: str,
    device: torch.device,
    *,
    autocast: bool = False,
    context: int | None = None,
) -> LanguageModel:
    """The model that the setting `key` names, with dtype and attention of the `student` or `teacher` section.

    Args:
        context: longest prompt and response of the run together, tokens, for positions that depend on it.
    """
    model = load_pretrained(
        folder,
        key=key,
        dtype=section.dtype,
        device=device,
        attention=section.attention,
        revision=section.revision,
        trust_remote_code=section.trust_remote_code,
    )
    if context is not None:
        rope.pin(model, context, f"{key}={folder}")
    lm = LanguageModel(model, autocast=autocast, name=key.removesuffix(".path"))
    if section.compile:
        compile_layers(lm)
    return lm


def student(
    config: Config, folder: str, device: torch.device, checkpoint: Path | None = None, *, context: int | None = None
) -> Student:
    """The student, at a checkpoint's weights and optimiser state where there is one. See `language_model`."""
    optim, lora = config.optim, config.student.lora
    # Of several processes one loads the model, which need not fit on a GPU, and hands it out.
    start = device if world().size == 1 else torch.device("cpu" if world().leader else "meta")
    lm, adapters = world().together(lambda: student_model(config, folder, start, checkpoint, context=context))
    if config.student.gradient_checkpointing:
        lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if lora.rank:
            lm.model.enable_input_require_grads()
    shard_student(config, lm)
    reshard = not isinstance(config.parallel, FsdpConfig) or config.parallel.reshard
    made = Student(lm, optim, optim.micro_batch_tokens, adapters, reshard, config.rollout.shares_prompts)
    if checkpoint is not None:
        try:
            made.load_optimizer(checkpoint)
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, OSError, EOFError, PickleError) as error:
            raise RunFolderError(
                f"{checkpoint / 'optimizer'}: is no state of this student's optimiser ({first_line(error)}); remove "
                f"{checkpoint} to resume from the checkpoint before it, or train from scratch in another folder"
            ) from error
    return made


def student_model(
    config: Config, folder: str, device: torch.device, checkpoint: Path | None = None, *, context: int | None = None
) -> "tuple[LanguageModel, PeftModel | None]":
    """The student's model at a checkpoint's weights where there is one, and its adapters where LoRA is used."""
    lora = bool(config.student.lora.rank)
    weights = folder if checkpoint is None or lora else str(checkpoint / "model")
    autocast = config.optim.autocast
    lm = language_model("student.path", config.student, weights, device, autocast=autocast, context=context)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", ".*_pattern keys did not match"
        )  # peft's warning about fused experts, which is wrong
        return lm, adapters(config, lm.model, checkpoint) if lora else None


def adapters(config: Config, model: PreTrainedModel, checkpoint: Path | None = None) -> "PeftModel":
    """The peft model around `model`, which gets adapters as `student.lora` says, or those of a checkpoint.

    Raises:
        ConfigError: peft is not installed, or the targets are no modules of the model.
    """
    try:
        import peft
    except ModuleNotFoundError:
        raise ConfigError(
            f"student.lora.rank={config.student.lora.rank}: peft is not installed; pip install 'iwopd[lora]'"
        ) from None
    if checkpoint is not None:
        return peft.PeftModel.from_pretrained(model, str(checkpoint / "model"), is_trainable=True)
    lora = config.student.lora
    targets = lora.targets if lora.targets == "all-linear" else lora.targets.split(",")
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets
    )  # pyright: ignore[reportCallIssue]
    with fork_rng(devices=[]):
        manual_seed(config.seed)
        try:
            return peft.get_peft_model(model, settings)
        except ValueError as error:
            reason = first_line(error)
            if "lora_dropout" in reason:
                raise ConfigError(
                    f"student.lora.dropout={lora.dropout:g}: peft has none for experts held in one tensor; set "
                    "it to 0, or have student.lora.targets name other modules"
                ) from error
            raise ConfigError(f"student.lora.targets={lora.targets}: {reason}; name modules of the model") from error
