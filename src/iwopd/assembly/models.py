"""Student, teacher and engine, on their devices."""

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from iwopd.assembly.vllm import Served, vllm_engine, vllm_server_engine, vllm_server_teacher, vllm_teacher
from iwopd.config import (
    Config,
    HfRolloutConfig,
    HfScoringConfig,
    RolloutConfig,
    VllmRolloutConfig,
    VllmScoringConfig,
    VllmServerRolloutConfig,
    VllmServerScoringConfig,
)
from iwopd.errors import ConfigError, ModelError, RunFolderError, first_line, loading_error
from iwopd.preflight.models import adapters_refused

if TYPE_CHECKING:
    import torch

    from iwopd.models.language_model import LanguageModel
    from iwopd.models.student import Student
    from iwopd.rollout.base import Engine
    from iwopd.scoring.base import Teacher
    from iwopd.types import Prompt

log = logging.getLogger(__name__)


def device(name: str, deterministic: bool = True) -> "torch.device":
    """run.device as torch's; on a GPU with kernels that make runs repeatable, where that is asked for.

    Raises:
        ConfigError: the GPU it names is not there.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = _torch_device("run.device", name)
    if chosen.type == "cuda" and deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    return chosen


def _torch_device(key: str, name: str) -> "torch.device":
    import torch

    chosen = torch.device(name)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"{key}={name}: this machine has {torch.cuda.device_count()} CUDA devices; use auto or cpu")
    return chosen


def language_model(
    key: str,
    section: Any,
    folder: str,
    device: "torch.device",
    *,
    autocast: bool = False,
    context: int | None = None,
) -> "LanguageModel":
    """The model that the setting `key` names, with dtype and attention of the `student` or `teacher` section.

    Args:
        context: longest prompt and response of the run together, tokens, for positions that depend on it.
    """
    from iwopd.models import rope
    from iwopd.models.language_model import LanguageModel, load_pretrained

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
    return LanguageModel(model, autocast=autocast, name=key.removesuffix(".path"))


def student(
    config: Config, folder: str, device: "torch.device", checkpoint: Path | None = None, *, context: int | None = None
) -> "Student":
    """The student, at a checkpoint's weights and optimiser state where there is one. See `language_model`."""
    from iwopd.models.student import OptimSettings, Student

    optim, lora = config.optim, config.student.lora
    lm, adapters = student_model(config, folder, device, checkpoint, context=context)
    if config.student.gradient_checkpointing:
        lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if lora.rank:
            lm.model.enable_input_require_grads()
    settings = OptimSettings(
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        betas=(optim.betas[0], optim.betas[1]),
        eps=optim.eps,
        grad_clip=optim.grad_clip,
    )
    made = Student(lm, settings, optim.micro_batch_tokens, adapters)
    if checkpoint is not None:
        try:
            made.load_optimizer(checkpoint)
        except (KeyError, ValueError, TypeError, AttributeError, OSError, EOFError, UnpicklingError) as error:
            raise RunFolderError(
                f"{checkpoint / 'optimizer.pt'}: is no state of this student's optimiser ({first_line(error)}); remove "
                f"{checkpoint} to resume from the checkpoint before it, or train anew in another folder"
            ) from error
    return made


def student_model(
    config: Config, folder: str, device: "torch.device", checkpoint: Path | None = None, *, context: int | None = None
) -> tuple["LanguageModel", Any | None]:
    """The student's model at a checkpoint's weights where there is one, and its adapters where LoRA is used."""
    lora = bool(config.student.lora.rank)
    weights = folder if checkpoint is None or lora else str(checkpoint / "model")
    autocast = config.optim.autocast
    lm = language_model("student.path", config.student, weights, device, autocast=autocast, context=context)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*_pattern keys did not match")  # says peft of fused experts, and errs
        return lm, adapters(config, lm.model, checkpoint) if lora else None


def adapters(config: Config, model: Any, checkpoint: Path | None = None) -> Any:
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
    from torch.random import fork_rng, manual_seed

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
            reason = str(error).splitlines()[0]
            if "lora_dropout" in reason:
                raise ConfigError(
                    f"student.lora.dropout={lora.dropout:g}: peft has none for experts held in one tensor; set "
                    "it to 0, or have student.lora.targets name other modules"
                ) from error
            raise ConfigError(f"student.lora.targets={lora.targets}: {reason}; name modules of the model") from error


def teacher(config: Config, served: Served, device: "torch.device") -> "Teacher":
    """One teacher, where the `scoring` group wants it.

    Args:
        device: where it computes with scoring=hf, unless its section says otherwise.

    Raises:
        IwopdError: its model cannot be loaded, or its engine or servers cannot be used.
    """
    match config.scoring:
        case HfScoringConfig():
            return _hf_teacher(config, served, device)
        case VllmScoringConfig() as scoring:
            return vllm_teacher(scoring, served)
        case VllmServerScoringConfig() as scoring:
            return vllm_server_teacher(scoring, served)
        case other:
            raise ConfigError(f"scoring={type(other).__name__}: no teacher of that kind; choose scoring=hf")


def teachers(
    config: Config, served: Mapping[str, Served], device: "torch.device", prompts: "Sequence[Prompt]", stack: ExitStack
) -> "Teacher":
    """The teacher; of several, each scores the answers to the prompts that name it.

    Args:
        served: by the key of the section.
        stack: closes them.
    """
    found = {key: stack.enter_context(teacher(config, each, device)) for key, each in served.items()}
    if len(found) == 1:
        return found["teacher"]
    from iwopd.scoring.several import SeveralTeachers

    named = {key.removeprefix("teachers."): each for key, each in found.items() if key != "teacher"}
    return SeveralTeachers({config.teacher.name: found["teacher"], **named}, config.teacher.name, prompts)


def base(config: Config, served: Served, device: "torch.device") -> "Teacher":
    """The model ExOPD starts from, scored in this process whatever the teacher runs in."""
    return _hf_teacher(config, served, device)


def _hf_teacher(config: Config, served: Served, device: "torch.device") -> "Teacher":
    import torch

    from iwopd.scoring.hf import HfTeacher

    section: Any = served.section
    own = _torch_device(f"{served.key}.device", section.device) if section.device else device
    tokens = config.scoring.batch_tokens if isinstance(config.scoring, HfScoringConfig) else None
    home = torch.device("cpu") if section.offload else own
    lm = language_model(f"{served.key}.path", section, served.folder, home, context=served.context)
    return HfTeacher(lm, own, tokens, section.offload)


def engine(config: Config, served: Served, lm: "LanguageModel | None" = None) -> "Engine":
    """The rollout engine of the `rollout` group.

    Args:
        lm: the model itself, for engines that sample from it.

    Raises:
        IwopdError: an engine or server cannot be used.
    """
    match config.rollout:
        case HfRolloutConfig() as rollout:
            from iwopd.rollout.hf import HfEngine

            assert lm is not None, "hf samples from the model in this process"
            return HfEngine(lm, served.stop_ids, rollout.batch_size, served.vocabulary)
        case VllmRolloutConfig() as rollout:
            return vllm_engine(config, rollout, served)
        case VllmServerRolloutConfig() as rollout:
            return vllm_server_engine(config, rollout, served)
        case other:
            raise ConfigError(f"rollout={type(other).__name__}: no engine of that kind; choose rollout=hf")


def teacher_engine(rollout: RolloutConfig, served: Served, lm: "LanguageModel") -> "Engine":
    """Samples from a teacher in transformers, whatever engine the student has."""
    from iwopd.rollout.hf import HfEngine

    size = rollout.batch_size if isinstance(rollout, HfRolloutConfig) else HfRolloutConfig().batch_size
    return HfEngine(lm, served.stop_ids, size, served.vocabulary)


def stop_ids(key: str, section: Any, folder: str, tokenizer: Any) -> tuple[int, ...]:
    """End-of-sequence ids: the tokenizer's, and those the model's generation config adds.

    Ids that the model has no row for can never be sampled, and engines refuse them: they are left out, with a warning.
    """
    from transformers import GenerationConfig

    try:
        generation = GenerationConfig.from_pretrained(folder, revision=section.revision or "main")
        more: Any = generation.eos_token_id
    except OSError:  # a model need not have one; then its own config speaks
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


def model_config(key: str, section: Any, folder: str) -> Any:
    """The text part of a model's config.json: what must be known before it loads, or of one served elsewhere.

    Raises:
        ModelError: it cannot be read.
    """
    return whole_config(key, section, folder).get_text_config(decoder=True)


def whole_config(key: str, section: Any, folder: str) -> Any:
    """transformers' config of a model. See `model_config`.

    Raises:
        ModelError: a model of the hub comes as adapters; of a folder that was told before (`check_model_folder`).
    """
    from transformers import AutoConfig
    from transformers.utils.peft_utils import find_adapter_config_file

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


def check_vocabulary(name: str, vocabulary: int, path: str, tokenizer: Any) -> None:
    """Every id of the tokenizer must have a row in the model.

    Raises:
        ModelError: it has fewer.
    """
    if vocabulary < len(tokenizer):
        raise ModelError(
            f"{name}.path={path}: the model has {vocabulary} rows for a tokenizer of {len(tokenizer)} tokens; "
            "resize its embeddings, or name another"
        )


def check_context(name: str, model_config: Any, key: str, longest_prompt: int, max_tokens: int) -> None:
    """Prompt and response must fit in what the model can attend to.

    Args:
        name: student or teacher, for messages.

    Raises:
        ConfigError: says by how much they do not.
    """
    from iwopd.models.rope import context_limit

    context = context_limit(model_config)
    if context is not None and longest_prompt + max_tokens > context:
        raise ConfigError(
            f"{key}={max_tokens}: with a prompt of {longest_prompt} tokens more than the {context} the {name} can "
            f"attend to; set it to {max(1, context - longest_prompt)} or less"
        )
