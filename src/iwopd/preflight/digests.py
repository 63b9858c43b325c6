"""What a run reads, in a few bytes: its models and its problems, so that a resumed run can tell whether they changed.

{"models":   {"teacher.path": {"path": …, "files": {"model.safetensors": …, …}}},      or {"path": …, "commit": …}
 "problems": {"data": {"path": …, "digests": {"train-1": …, …}, "commits": {"data": …}}}}     of datasets of the hub
"""

import hashlib
import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE

from iwopd.preflight.models import WEIGHTS
from iwopd.types import Prompt

WHOLE = 2**29  # bytes of a file up to which all of it counts
PART = 2**20  # bytes read at one time
BLOCK, STRIDE = 4096, 2**24  # bytes; of a larger one, a block of each tensor, and of each stride of a large tensor
# What transformers reads of a model's folder besides its weights: configs, tokenizers, chat templates, its own code.
READ = re.compile(r".*\.(json|jinja|model|tiktoken|py)|(merges|vocab)\.txt")
# What only describes a model, or how it was made.
NOT_READ = re.compile(r"manifest\.json|trainer(_state)?\.json|(all|train|eval|test|predict)_results\.json")
SHOWN = 4  # names in a message


# ---------------------------------------------------------------------------------------------- models


def model_digest(name: str, revision: str | None = None) -> dict[str, Any]:
    """Of a folder, a digest of each file that is read; of a model of the hub, the commit that its cache holds."""
    folder = Path(name)
    if folder.is_dir():
        files = _files(folder)
        with ThreadPoolExecutor(max_workers=8) as pool:  # a few blocks of many files: the disk's answer is waited for
            digests = list(pool.map(file_digest, files))
        return {"files": {str(file.relative_to(folder)): each for file, each in zip(files, digests, strict=True)}}
    found = try_to_load_from_cache(name, "config.json", revision=revision or "main")
    return {"commit": Path(found).parent.name if isinstance(found, str) else None}


def _files(folder: Path) -> list[Path]:
    """Those that transformers reads: of the weights, one format."""
    names = [*folder.iterdir(), *(folder / "additional_chat_templates").glob("*.jinja")]
    small = [file for file in names if READ.fullmatch(file.name) and not NOT_READ.fullmatch(file.name)]
    adapters = [folder / f"adapter_model{suffix}" for suffix in (".safetensors", ".bin")]
    weights = next(([folder / name] for name in WEIGHTS if (folder / name).is_file()), list[Path]())
    if weights and weights[0].suffix == ".json":
        listed = json.loads(weights[0].read_text(encoding="utf-8"))["weight_map"].values()
        weights = [folder / name for name in set(listed)]
    return sorted({file for file in [*small, *weights, *adapters] if file.is_file()})


def file_digest(file: Path) -> str:
    """A hash of a file's size and contents; of one above WHOLE, of its header and of blocks of every tensor, which
    cannot stay as they are where the model was trained further."""
    size = file.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    places = [(0, size)] if size <= WHOLE else _blocks(file, size)
    with file.open("rb") as stream:
        for start, length in places:
            stream.seek(start)
            for part in range(0, length, PART):
                digest.update(stream.read(min(PART, length - part)))
    return digest.hexdigest()


def _blocks(file: Path, size: int) -> list[tuple[int, int]]:
    """Places and lengths, bytes: both ends (a torch archive ends with checksums of all that is in it) and blocks."""
    begin, parts = 0, [(0, size)]
    if file.suffix == ".safetensors":
        with file.open("rb") as stream:
            begin = 8 + int.from_bytes(stream.read(8), "little")
            tensors = json.loads(stream.read(begin - 8))
        offsets = [entry["data_offsets"] for name, entry in tensors.items() if name != "__metadata__"]
        parts = [(begin + start, begin + stop) for start, stop in sorted(offsets)]
    found = [(0, max(begin, BLOCK)), (max(0, size - PART), PART)]
    for start, stop in parts:
        for place in range(start, stop, STRIDE):
            middle = (place + min(stop, place + STRIDE)) // 2
            found.append((middle, min(BLOCK, stop - middle)))
    return found


def combined(digest: Mapping[str, Any]) -> str:
    """One hash of what `model_digest` found."""
    return hashlib.sha256(json.dumps(digest, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------- problems


def problem_digests(prompts: Sequence[Prompt], *, graded: bool = False, tested: bool = False) -> dict[str, str]:
    """A hash of each problem as it is asked: its token ids, its teacher, and what this one is asked.

    Args:
        graded: its answer counts too.
        tested: so does its row, which holds the tests of a program.
    """
    return {prompt.id: _problem_digest(prompt, graded, tested) for prompt in prompts}


def _problem_digest(prompt: Prompt, graded: bool, tested: bool) -> str:
    digest = hashlib.blake2b(array("q", prompt.ids).tobytes(), digest_size=8)
    counted: list[object] = [prompt.teacher, prompt.answer if graded else None, prompt.row if tested else None]
    counted += [prompt.teacher_ids] if prompt.teacher_ids is not None else []
    digest.update(json.dumps(counted, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def dataset_commits(sources: Mapping[str, Any]) -> dict[str, str]:
    """The commits that the cache holds of datasets of the hub.

    Args:
        sources: sections with a path and a revision, by their keys.
    """
    found = dict[str, str]()
    for key, source in sources.items():
        revision = source.revision or "main"
        refs = Path(HF_HUB_CACHE) / f"datasets--{str(source.path).replace('/', '--')}" / "refs" / revision
        if re.fullmatch(r"[0-9a-f]{40}", revision):
            found[key] = revision
        elif source.path and not Path(source.path).exists() and refs.is_file():
            found[key] = refs.read_text(encoding="utf-8").strip()
    return found


# ---------------------------------------------------------------------------------------------- what changed


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between what a run read when it began and what it would read now: a text for each setting."""
    found = list[str]()
    for key, model in now["models"].items():
        if key in then["models"]:
            found += [f"{key}={model['path']}: {text}" for text in _model_changes(key, then["models"][key], model)]
    for key, problems in now["problems"].items():
        if key in then["problems"]:
            was = then["problems"][key]
            texts = [*_problem_changes(was["digests"], problems["digests"])]
            moved = _commit_changes(was.get("commits") or {}, problems.get("commits") or {}) if texts else ""
            found += [f"{key}.path={problems['path']}: {text}{moved}" for text in texts]
    return found


def _model_changes(key: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    if "files" in then and "files" in now:
        names = _compared(then["files"], now["files"])
        for text, files in zip(("has another", "has no", "now has"), names, strict=True):
            if files:
                yield f"{text} {_listed(files)}"
    elif then.get("commit") != now.get("commit") or "files" in then or "files" in now:
        was, kept = then.get("commit"), then["path"]
        fix = f"set {key.removesuffix('path')}revision={was}" if was else f"name {kept}"
        yield f"is not what it was, {f'commit {was} of {kept}' if was else kept}; {fix} to resume with that"


def _problem_changes(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    changed, gone, added = _compared(then, now)
    if changed:
        yield f"{len(changed)} of {len(then)} problems are not what they were ({_listed(changed)})"
    if gone:
        yield f"{len(gone)} of {len(then)} problems are gone ({_listed(gone)})"
    if added:
        yield f"{len(added)} problems are new ({_listed(added)})"
    if not changed and not gone and not added and list(then) != list(now):
        yield "its problems are in another order"


def _commit_changes(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """How to get the datasets of the hub as they were."""
    moved = [f"{key}.revision={commit}" for key, commit in then.items() if now.get(key) != commit]
    return f", as its dataset changed on the hub; set {' '.join(moved)} to resume with what it was" if moved else ""


def _compared(then: Mapping[str, str], now: Mapping[str, str]) -> tuple[list[str], list[str], list[str]]:
    """Names of what changed, is gone, and is new."""
    changed = [name for name in then if name in now and then[name] != now[name]]
    return changed, [name for name in then if name not in now], [name for name in now if name not in then]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
