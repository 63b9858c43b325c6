"""TRL's IW-OPD trainer on the same sequences: its own loss and optimiser, without its sampling."""

import importlib.util
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from gpu_parts.common import Work, empty, make_model, make_rollouts, timed
from iwopd.toy.tokenizer import make_tokenizer


def peer(device: torch.device, shape: dict[str, int], works: list[Work]) -> dict[str, Any]:
    """Teacher's pass and update of each work, in the largest batch that fits its memory."""
    if importlib.util.find_spec("trl") is None:
        return {"skipped": "trl is not installed"}
    return {str(work): _largest(device, shape, work) for work in works}


def _largest(device: torch.device, shape: dict[str, int], work: Work) -> dict[str, Any]:
    size = work.sequences
    while size:
        try:
            return {"batch": size, **_step(device, shape, work, size)}
        except torch.OutOfMemoryError:
            size //= 2
        finally:
            empty(device)
    return {"error": "one sequence does not fit in the GPU's memory"}


def _step(device: torch.device, shape: dict[str, int], work: Work, size: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as room:
        make_tokenizer().save_pretrained(room)
        teacher = make_model(shape, 1, device=device, dtype=torch.bfloat16)
        run = score_and_update(make_model(shape, 0, device=device), teacher, device, work, size, room)
    return timed(device, run, work.tokens, times=2)


def make_trainer(
    student: PreTrainedModel, teacher: PreTrainedModel, turns: list[Any], room: str, *, tokenizer: str, **settings: Any
) -> Any:
    """TRL's trainer with the IW-OPD objective; what is not in `settings` is as in every comparison.

    Args:
        turns: the messages of each row of the data.
        room: a folder for what it writes.
        tokenizer: its folder.
    """
    from datasets import Dataset
    from trl.experimental.iw_opd import IWOPDConfig, IWOPDTrainer

    teacher.config.save_pretrained(room)
    teacher.config._name_or_path = tokenizer  # where the trainer looks for the teacher's tokenizer
    given: dict[str, Any] = {
        "output_dir": room, "iw_opd_gamma": 0.5, "temperature": 1.0, "top_p": 1.0, "learning_rate": 1e-6,
        "lr_scheduler_type": "constant", "max_grad_norm": 1.0, "bf16": True, "gradient_checkpointing": False,
        "report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "max_steps": 1,
    }  # fmt: skip
    return IWOPDTrainer(
        model=student,
        teacher_model=teacher,
        args=IWOPDConfig(**{**given, **settings}),
        train_dataset=Dataset.from_list([{"messages": each} for each in turns]),
        processing_class=AutoTokenizer.from_pretrained(tokenizer),
    )


def score_and_update(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    device: torch.device,
    work: Work,
    size: int,
    tokenizer: str,
    **settings: Any,
) -> Callable[[], None]:
    """What makes the loss of `work` in batches of `size`, and one optimiser step, when it is called.

    Args:
        tokenizer: its folder.
        settings: of the trainer.
    """
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with tempfile.TemporaryDirectory() as room:
        trainer = make_trainer(
            student,
            teacher,
            [turns] * size,
            room,
            tokenizer=tokenizer,
            per_device_train_batch_size=size,
            use_cpu=device.type == "cpu",
            **settings,
        )
    trainer.create_optimizer()
    vocabulary = student.config.vocab_size
    batches = [_batch(work, start, size, vocabulary, device) for start in range(0, work.sequences, size)]

    def run() -> None:
        trainer.model.train()
        for batch in batches:
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(work.tokens))
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return run


def _batch(work: Work, start: int, size: int, vocabulary: int, device: torch.device) -> dict[str, torch.Tensor]:
    rollouts = make_rollouts(work, vocabulary)[start : start + size]
    ids = torch.tensor([[*each.prompt_ids, *each.response_ids] for each in rollouts], device=device)
    labels = ids.clone()
    labels[:, : work.prompt] = -100
    prompts = ids[:, : work.prompt].clone()
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "prompts": prompts,
        "prompt_attention_mask": torch.ones_like(prompts),
    }
