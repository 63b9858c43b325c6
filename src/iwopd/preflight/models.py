"""What can be known of a model folder and a pair of tokenizers before torch is imported or weights are read."""

import json
import zipfile
from pathlib import Path
from typing import Any

from iwopd.config.names import checkpoint_folders, checkpoint_step
from iwopd.errors import ModelError
from iwopd.types import Tokenizer

# What PyTorch's format of before version 1.6 begins with: its magic number, pickled.
OLD_TORCH = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
ADAPTERS = "adapter_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def check_model_folder(key: str, folder: Path) -> dict[str, Any]:
    """The model's config.json, after a look at every file it needs.

    Args:
        key: the setting the folder came from, for messages.

    Raises:
        ModelError: no folder, no model in it, adapters instead of or beside one, or a weights file that is missing or
            cut short.
    """
    said = f"{key}={folder}"
    try:
        exists = folder.exists()
    except (OSError, ValueError) as error:
        raise ModelError(f"{said}: not a path ({getattr(error, 'strerror', None) or error}); check it") from None
    if not exists:
        raise ModelError(f"{said}: does not exist; check the path")
    if not folder.is_dir():
        raise ModelError(f"{said}: is a file; name the folder of a model in HF format")
    check_whole_model(key, folder)
    config = _read_json(said, folder / "config.json")
    if "model_type" not in config:
        raise ModelError(f"{said}: config.json names no model_type; name the folder of a model in HF format")
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise ModelError(f"{said}: has a config.json but no weights; save the model with save_pretrained")
    files = [weights]
    if weights.name.endswith(".index.json"):
        files = [folder / name for name in sorted(set(_read_json(said, weights).get("weight_map", {}).values()))]
    for file in files:
        problem = _weights_problem(file)
        if problem:
            raise ModelError(f"{said}: {file.name} {problem}; copy or download it again")
    return config


def check_whole_model(key: str, folder: Path) -> None:
    """Refuse a folder of a run, and one with adapters: transformers would take other weights than those that are there.

    Raises:
        ModelError: says what to name instead.
    """
    said = f"{key}={folder}"
    whole = (folder / "config.json").is_file() or (folder / ADAPTERS).is_file()
    if not whole and (models := _models_of_run(folder)) is not None:
        named = (
            f"its student is {key}={models[-1]}" if models else "it has no whole model yet; finish it, and name final/"
        )
        raise ModelError(f"{said}: is the folder of a run, not a model; {named}")
    if (folder / ADAPTERS).is_file():
        raise ModelError(adapters_refused(said, folder / ADAPTERS))


def _models_of_run(folder: Path) -> list[Path] | None:
    """The whole models in the folder of a run, of its checkpoints or of one of them, last one last; None for others."""
    steps = [*checkpoint_folders(folder), *checkpoint_folders(folder / "checkpoints")]
    if not steps and not any((folder / name).exists() for name in ("about.json", "trainer.json", "checkpoints")):
        return None
    models = [folder / "model", *(step / "model" for step in steps), folder / "final"]
    return [model for model in models if (model / "config.json").is_file()]


def adapters_refused(said: str, file: Path) -> str:
    """What to say of a model that comes as adapters, or with some; `file` is their adapter_config.json."""
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    named = f" of {base}" if base else ""
    run = file.parent.parent.parent.parent
    if checkpoint_step(file.parent.parent.name) is not None and (run / "final").is_dir():
        return f"{said}: holds adapters{named}, not a whole model; the run's final/ has them merged: {run / 'final'}"
    beside = "remove adapter_config.json if its weights are to be used without them, or " if _has_weights(file) else ""
    return (
        f"{said}: holds adapters{named} (adapter_config.json), which are not applied; {beside}merge them with peft "
        "(AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload().save_pretrained(NEW)) and name NEW"
    )


def _has_weights(file: Path) -> bool:
    return any((file.parent / name).is_file() for name in WEIGHTS)


def _read_json(said: str, file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ModelError(f"{said}: has no {file.name}, so it is not a model; name a folder in HF format")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{said}: {file.name} is not JSON ({error}); copy or download it again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{said}: {file.name} is not a JSON object; copy or download it again")
    return content


def _weights_problem(file: Path) -> str | None:
    if not file.is_file():
        return "is listed in the index but missing"
    size = file.stat().st_size
    if file.suffix != ".safetensors":
        with file.open("rb") as stream:
            old = stream.read(len(OLD_TORCH)) == OLD_TORCH
        return None if old or zipfile.is_zipfile(file) else "is cut short or not a PyTorch file"
    with file.open("rb") as stream:
        header_size = int.from_bytes(stream.read(8), "little")
        if size < 8 or header_size > size - 8:
            return f"is cut short: {size} bytes"
        try:
            header = json.loads(stream.read(header_size))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return "is damaged: its header cannot be read"
    wanted = 8 + header_size + max(ends, default=0)
    return None if size == wanted else f"is cut short or damaged: {size} of {wanted} bytes"


def check_tokenizers(
    student: Tokenizer, teacher: Tokenizer, student_path: str, teacher_path: str, key: str = "teacher"
) -> None:
    """Student and teacher must give the same tokens the same ids: they score the same ids.

    Args:
        key: the teacher's section of the config.

    Raises:
        ModelError: says in what they differ.
    """
    said = f"{key}.path={teacher_path}: its tokenizer differs from that of student.path={student_path}"
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours != theirs:
        differing = sorted(
            (token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)),
            key=lambda token: (min(ours.get(token, 1 << 60), theirs.get(token, 1 << 60)), token),
        )
        first = differing[0]
        raise ModelError(
            f"{said}: {len(differing)} tokens (vocabularies of {len(ours)} and {len(theirs)}), first {first!r} with id "
            f"{ours.get(first)} in the student and {theirs.get(first)} in the teacher; choose a pair of one family"
        )
    for name in ("eos_token_id", "bos_token_id"):
        if getattr(student, name) != getattr(teacher, name):
            raise ModelError(
                f"{said}: {name} is {getattr(student, name)} in the student and {getattr(teacher, name)} in the "
                "teacher; set it alike in both tokenizer_config.json"
            )
    probe = "The answer is 42.\n\nx² + y² = r², naïve café 数学 \\boxed{7}"
    if student.encode(probe) != teacher.encode(probe):
        raise ModelError(f"{said}: the same text gets other ids ({probe!r}); choose a pair of one family")
