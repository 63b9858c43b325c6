"""Student, teacher and engine, on their devices."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iwopd.config import Config, HfRolloutConfig, HfScoringConfig, RolloutConfig
from iwopd.errors import ConfigError, ModelError

if TYPE_CHECKING:
    import torch

    from iwopd.engines.base import Engine
    from iwopd.language_model import LanguageModel
    from iwopd.student import Student
    from iwopd.teachers.base import Teacher


def device(name: str, deterministic: bool = True) -> "torch.device":
    """run.device as torch's; on a GPU with kernels that make runs repeatable, where that is asked for.

    Raises:
        ConfigError: the GPU it names is not there.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = torch.device(name)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"run.device={name}: this machine has {torch.cuda.device_count()} CUDA devices; use auto or cpu"
        )
    if chosen.type == "cuda" and deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    return chosen


def language_model(
    key: str, section: Any, folder: str, device: "torch.device", *, autocast: bool = False
) -> "LanguageModel":
    """The model that the setting `key` names, with dtype and attention of the `student` or `teacher` section."""
    from iwopd.language_model import LanguageModel, load_pretrained

    model = load_pretrained(
        folder,
        key=key,
        dtype=section.dtype,
        device=device,
        attention=section.attention,
        revision=section.revision,
        trust_remote_code=section.trust_remote_code,
    )
    return LanguageModel(model, autocast=autocast, name=key.removesuffix(".path"))


def student(config: Config, folder: str, device: "torch.device", checkpoint: Path | None = None) -> "Student":
    """The student, at a checkpoint's weights and optimiser state where there is one."""
    from iwopd.student import OptimSettings, Student

    optim, lora = config.optim, config.student.lora
    lm, adapters = student_model(config, folder, device, checkpoint)
    if config.student.gradient_checkpointing:
        lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if lora.rank:
            lm.model.enable_input_require_grads()
    settings = OptimSettings(
        lr=optim.lr,
        total=config.run.steps * optim.updates_per_batch,
        weight_decay=optim.weight_decay,
        betas=(optim.betas[0], optim.betas[1]),
        eps=optim.eps,
        grad_clip=optim.grad_clip,
        schedule=optim.schedule,  # pyright: ignore[reportArgumentType]  its choices are checked by the schema
        warmup=optim.warmup_steps,
        final=optim.final_lr,
    )
    made = Student(lm, settings, optim.micro_batch_tokens, adapters)
    if checkpoint is not None:
        made.load_optimizer(checkpoint)
    return made


def student_model(
    config: Config, folder: str, device: "torch.device", checkpoint: Path | None = None
) -> tuple["LanguageModel", Any | None]:
    """The student's model at a checkpoint's weights where there is one, and its adapters where LoRA is used."""
    lora = bool(config.student.lora.rank)
    weights = folder if checkpoint is None or lora else str(checkpoint / "model")
    lm = language_model("student.path", config.student, weights, device, autocast=config.optim.autocast)
    return lm, _adapters(config, lm.model, checkpoint) if lora else None


def _adapters(config: Config, model: Any, checkpoint: Path | None) -> Any:
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
            raise ConfigError(f"student.lora.targets={lora.targets}: {reason}; name modules of the model") from error


def teacher(config: Config, folder: str, device: "torch.device") -> "Teacher":
    """The teacher of the `scoring` group."""
    match config.scoring:
        case HfScoringConfig() as scoring:
            import torch

            from iwopd.teachers.hf import HfTeacher

            home = torch.device("cpu") if config.teacher.offload else device
            lm = language_model("teacher.path", config.teacher, folder, home)
            return HfTeacher(lm, device, scoring.batch_tokens, config.teacher.offload)
        case other:
            raise ConfigError(f"scoring={type(other).__name__}: no teacher of that kind; choose scoring=hf")


def engine(rollout: RolloutConfig, lm: "LanguageModel", tokenizer: Any, vocabulary: int | None = None) -> "Engine":
    """The rollout engine of the `rollout` group; it samples ids below `vocabulary`, those the teacher knows too."""
    match rollout:
        case HfRolloutConfig():
            from iwopd.engines.hf import HfEngine

            return HfEngine(lm, stop_ids(lm, tokenizer), rollout.batch_size, vocabulary)
        case other:
            raise ConfigError(f"rollout={type(other).__name__}: no engine of that kind; choose rollout=hf")


def teacher_engine(
    rollout: RolloutConfig, lm: "LanguageModel", tokenizer: Any, vocabulary: int | None = None
) -> "Engine":
    """Samples from a teacher in transformers, whatever engine the student has."""
    from iwopd.engines.hf import HfEngine

    size = rollout.batch_size if isinstance(rollout, HfRolloutConfig) else HfRolloutConfig().batch_size
    return HfEngine(lm, stop_ids(lm, tokenizer), size, vocabulary)


def stop_ids(lm: "LanguageModel", tokenizer: Any) -> list[int]:
    """End-of-sequence ids: the tokenizer's, and those the model's generation config adds."""
    more = getattr(lm.model.generation_config, "eos_token_id", None)
    listed = more if isinstance(more, list) else [more]
    return sorted({tokenizer.eos_token_id, *(token for token in listed if token is not None)})


def check_vocabulary(lm: "LanguageModel", path: str, tokenizer: Any) -> None:
    """Every id of the tokenizer must have a row in the model.

    Raises:
        ModelError: it has fewer.
    """
    if lm.vocabulary < len(tokenizer):
        raise ModelError(
            f"{lm.name}.path={path}: the model has {lm.vocabulary} rows for a tokenizer of {len(tokenizer)} tokens; "
            "resize its embeddings, or name another"
        )


def check_context(lm: "LanguageModel", key: str, longest_prompt: int, max_tokens: int) -> None:
    """Prompt and response must fit in what the model can attend to.

    Raises:
        ConfigError: says by how much they do not.
    """
    context = getattr(lm.model.config, "max_position_embeddings", None)
    if context is not None and longest_prompt + max_tokens > context:
        raise ConfigError(
            f"{key}={max_tokens}: with a prompt of {longest_prompt} tokens more than the {context} the {lm.name} can "
            f"attend to; set it to {max(1, context - longest_prompt)} or less"
        )
