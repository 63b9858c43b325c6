"""Which toy models there are; they are trained on first use and cached in HF format by a hash of what made them."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType

from filelock import FileLock

from iwopd.errors import ModelError
from iwopd.toy import SCHEME, SMOKE, STANDARD, Noise, lookup
from iwopd.toy.hints import HintedRecipe
from iwopd.toy.training import Advance, ModelRecipe, train_model

Stage = Callable[[str], AbstractContextManager[Advance]]

CLEAN, WEAK, LATE = Noise(), Noise(plan=0.3, execution=0.05), Noise(execution=0.25)
TEACHER = ModelRecipe(STANDARD, CLEAN, width=64, layers=3, heads=2, steps=900, lr=4e-3, seed=1)
# Not every seed learns the look-up in so few steps; those named here do, with one thread and so with the same sums.
STUDENT = replace(TEACHER, noise=WEAK, seed=4)
SMOKE_TEACHER = ModelRecipe(SMOKE, CLEAN, width=48, layers=2, heads=4, steps=450, lr=6e-3, seed=3)
Recipe = ModelRecipe | HintedRecipe
SMOKE_STUDENT = replace(SMOKE_TEACHER, noise=WEAK)
# Three students of each pair, in the order of their names: (seed, steps) of other weights and other problems.
STUDENTS: Mapping[str, tuple[ModelRecipe, tuple[tuple[int, int], ...]]] = MappingProxyType(
    {
        "standard": (STUDENT, ((4, 900), (5, 900), (6, 1300))),
        "cross_scale": (replace(STUDENT, width=48), ((1, 1300), (4, 1300), (6, 1300))),
        "late_errors": (replace(STUDENT, noise=LATE), ((4, 900), (6, 900), (10, 1300))),
        "plan_errors": (replace(STUDENT, noise=Noise(plan=0.2)), ((4, 900), (5, 900), (6, 900))),
        "execution_errors": (replace(STUDENT, noise=Noise(execution=0.12)), ((5, 900), (10, 1300), (12, 1300))),
        "mixed_errors": (replace(STUDENT, noise=Noise(plan=0.15, execution=0.12)), ((4, 900), (5, 900), (6, 900))),
    }
)
NAMES = ("student", "student_2", "student_3")


def _recipes() -> dict[str, Recipe]:
    found: dict[str, Recipe] = {"standard/teacher": TEACHER}
    hinted = dict[str, Recipe]()
    for pair, (recipe, made) in STUDENTS.items():
        for name, (seed, steps) in zip(NAMES, made, strict=True):
            found[f"{pair}/{name}"] = student = replace(recipe, seed=seed, steps=steps)
            if pair == "standard":
                hinted[f"hinted/{name}"] = HintedRecipe(student)
    found |= {**hinted, "smoke/teacher": SMOKE_TEACHER, "smoke/student": SMOKE_STUDENT}
    return found | {"hinted_smoke/student": HintedRecipe(SMOKE_STUDENT, steps=120)}


RECIPES: Mapping[str, Recipe] = MappingProxyType(_recipes())


def check_model(key: str, path: str) -> None:
    """Raise ConfigError unless `path` names a toy model."""
    lookup(key, path, RECIPES)


def ensure_models(paths: Mapping[str, str], stage: Stage) -> dict[str, Path]:
    """Folders of toy models, made first where they are not cached: at the same time, one process and one core each.

    Args:
        paths: toy addresses by the setting they came from.
        stage: from a title to a context manager that yields an `Advance` callback.

    Raises:
        ConfigError: a path names no toy model.
        ModelError: making one failed.
    """
    folders = {key: cached_folder(lookup(key, path, RECIPES), path) for key, path in paths.items()}
    missing = sorted({paths[key] for key, folder in folders.items() if not is_made(folder)})
    makers = [_Maker(path, stage) for path in missing]
    with ThreadPoolExecutor(max_workers=max(1, len(makers))) as pool:
        try:
            list(pool.map(_Maker.wait, makers))
        finally:  # before the pool waits for its threads, so that Ctrl-C ends them
            for maker in makers:
                maker.process.terminate()
    return folders


class _Maker:
    """Another process that makes one model, and its progress."""

    def __init__(self, path: str, stage: Stage):
        self.path = path
        self.stage = stage
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  it lives as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "iwopd.toy.models", path],
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # one core each, and the same sums on any machine
        )

    def wait(self) -> None:
        """Show its progress until it ends.

        Raises:
            ModelError: it failed; says why.
        """
        with self.errors, self.process as process, self.stage(f"making {self.path}") as advance:
            assert process.stdout is not None
            for line in process.stdout:
                done, total = map(int, line.split())
                advance(done, total)
            process.wait()
            self.errors.seek(0)
            errors = self.errors.read().strip().splitlines()
        if process.returncode != 0:
            reason = errors[-1] if errors else f"exit status {process.returncode}"
            raise ModelError(f"{self.path}: could not be made: {reason}; see {cache_folder()}")


def make_model(path: str, advance: Advance) -> None:
    """Make a toy model unless it is cached; safe when two processes ask at once."""
    recipe = RECIPES[path.removeprefix(SCHEME)]
    folder, base = cached_folder(recipe, path), None
    if isinstance(recipe, HintedRecipe) and not is_made(folder):
        before = next(name for name, each in RECIPES.items() if each == recipe.base)
        make_model(SCHEME + before, advance)
        base = cached_folder(recipe.base, before)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if is_made(folder):
            return
        draft = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            if isinstance(recipe, HintedRecipe):
                from iwopd.toy.hint_training import train_hinted  # torch takes 5 s, and names of models do without

                assert base is not None, "made above"
                train_hinted(recipe, base, draft, advance)
            else:
                train_model(recipe, draft, advance)
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def is_made(folder: Path) -> bool:
    """True for a cached model; it is whole, because it was renamed into place."""
    return (folder / "config.json").exists()


def cached_folder(recipe: Recipe, path: str) -> Path:
    """Where a model is cached."""
    return cache_folder() / f"{path.removeprefix(SCHEME).replace('/', '-')}-{fingerprint(recipe)}"


def cache_folder() -> Path:
    """$IWOPD_CACHE, else iwopd/ in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("IWOPD_CACHE") or Path(base) / "iwopd") / "toy"


def fingerprint(recipe: Recipe) -> str:
    """A hash of the recipe and of the code that carries it out."""
    more = ["hints.py", "hint_training.py"] if isinstance(recipe, HintedRecipe) else []
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    for name in ("task.py", "tokenizer.py", "training.py", *more):
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()[:12]


if __name__ == "__main__":
    make_model(sys.argv[1], lambda done, total: print(done, total, flush=True))
