"""TRL's IW-OPD trainer on the same sequences: its own loss and optimiser, without its sampling."""

import importlib.util
import tempfile
from typing import Any

import torch

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
    from datasets import Dataset
    from trl.experimental.iw_opd import IWOPDConfig, IWOPDTrainer

    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with tempfile.TemporaryDirectory() as room:
        tokenizer, teacher = make_tokenizer(), make_model(shape, 1, device=device, dtype=torch.bfloat16)
        tokenizer.save_pretrained(room)
        teacher.config.save_pretrained(room)
        teacher.config._name_or_path = room  # where the trainer looks for the teacher's tokenizer
        trainer = IWOPDTrainer(
            model=make_model(shape, 0, device=device),
            teacher_model=teacher,
            args=IWOPDConfig(
                output_dir=room, per_device_train_batch_size=size, iw_opd_gamma=0.5, learning_rate=1e-6, bf16=True,
                gradient_checkpointing=False, use_cpu=device.type == "cpu", report_to="none", max_steps=1,
            ),
            train_dataset=Dataset.from_list([{"messages": turns}] * size),
            processing_class=tokenizer,
        )  # fmt: skip
    trainer.create_optimizer()
    batches = [_batch(work, start, size, shape["vocab_size"], device) for start in range(0, work.sequences, size)]

    def run() -> None:
        trainer.model.train()
        for batch in batches:
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(work.tokens))
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return timed(device, run, work.tokens, times=2)


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
