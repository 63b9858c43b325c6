"""The pairs of models that both sides train, their problems, and how much of each a step takes."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpu_parts.common import QWEN3_06B_SHAPE, TINY_SHAPE, Work, make_model
from transformers import AutoTokenizer

from iwopd.toy import is_toy, toy_rows
from iwopd.toy.models import ensure_models
from iwopd.toy.tokenizer import make_tokenizer

QWEN3_25M_SHAPE = {
    "vocab_size": 32768, "hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 7,
    "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 64,
}  # fmt: skip
SMOLLM2_135M_SHAPE = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3,
}  # fmt: skip
TOY = "toy"


@dataclass(frozen=True)
class Size:
    """A pair of models, and the work of a step.

    Attributes:
        shape: of both models, which are random; empty for the toy pair.
        work: the prompts of a step, and most tokens of each prompt and response.
        bfloat16: products in bfloat16 (autocast; the teacher's weights too), else float32.
        model: a folder in place of random models.
    """

    work: Work
    shape: dict[str, Any] = field(default_factory=dict[str, Any])
    bfloat16: bool = True
    model: str | None = None


SIZES = {
    TOY: Size(Work(64, 80, 80), bfloat16=False),
    "25M": Size(Work(16, 64, 128), QWEN3_25M_SHAPE),
    "135M": Size(Work(8, 64, 96), SMOLLM2_135M_SHAPE),
    "0.6B": Size(Work(4, 32, 32), QWEN3_06B_SHAPE),
    "tiny": Size(Work(4, 16, 8), TINY_SHAPE),  # --quick
}
ON_GPU = {"25M": Work(64, 64, 512), "135M": Work(64, 64, 512), "0.6B": Work(32, 128, 512)}


@dataclass(frozen=True)
class Pair:
    """What both sides are given.

    Attributes:
        student, teacher: folders, or names of toys.
        problems: rows with a prompt and an answer; None for the toy task.
    """

    size: Size
    student: str
    teacher: str
    problems: Path | None

    @property
    def folders(self) -> dict[str, str]:
        """Of both models, toys in their cache."""
        given = {"student": self.student, "teacher": self.teacher}
        toys = {role: path for role, path in given.items() if is_toy(path)}
        return {**given, **{role: str(folder) for role, folder in ensure_models(toys, _no_progress).items()}}

    def rows(self, count: int) -> list[dict[str, Any]]:
        """The first problems."""
        if self.problems is None:
            return [dict(row) for row in toy_rows("data.path", "toy://standard", "train")[:count]]
        rows = [json.loads(line) for line in self.problems.read_text(encoding="utf-8").splitlines()]
        return [rows[place % len(rows)] for place in range(count)]


def prepare(name: str, room: Path, *, device: str, model: str | None = None) -> Pair:
    """The pair of a size; what is not there yet is made in `room`.

    Args:
        model: a folder that is both student and teacher, in place of random models of the size's shape.
    """
    size = replace(SIZES[name], model=model)
    if device == "cuda":
        size = replace(size, work=ON_GPU.get(name, size.work))
    if not size.shape:
        return Pair(size, "toy://standard/student", "toy://standard/teacher", None)
    folders = [room / name / role for role in ("student", "teacher")]
    for seed, folder in enumerate(folders):
        if not folder.exists():
            _make(folder, size, seed)
    problems = room / name / "problems.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in _problems(size)), encoding="utf-8")
    return Pair(size, *map(str, folders), problems)


def _make(folder: Path, size: Size, seed: int) -> None:
    if size.model is None:
        make_model(size.shape, seed).save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
    else:
        _without_end(Path(size.model), folder)


def _without_end(model: Path, folder: Path) -> None:
    """A copy of a model that never ends a response: its end-of-sequence token is a special one that it does not write.
    So both sides have responses of the same length."""
    shutil.copytree(model, folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    used = {tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token, tokenizer.unk_token}
    added = [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    tokenizer.eos_token = next(token for token in reversed(added) if token not in used)
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        if (file := folder / name).is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            file.write_text(json.dumps({**found, "eos_token_id": tokenizer.eos_token_id}), encoding="utf-8")


def _problems(size: Size) -> Iterator[dict[str, str]]:
    """Prompts as long as wanted where a token is a byte, as for the random models; less a few for the template."""
    for number in range(4 * size.work.sequences):
        text = (
            f"{number} birds sat on {number + 7} trees, and {number + 3} more came. How many is that, and why? Tell. "
        )
        yield {"prompt": (text * 9)[: size.work.prompt - 4], "answer": str(number)}


@contextmanager
def _no_progress(title: str) -> Iterator[Callable[[int, int], None]]:
    yield lambda done, total: None
