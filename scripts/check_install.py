"""Does the package work where nothing else is installed? Builds the sdist, the wheel from the sdist, installs that into
a new environment with what it requires and no more, and uses it from another folder.

    python scripts/check_install.py                        # what it requires comes from the package index (minutes)
    python scripts/check_install.py --linked               # from this environment, by links: nothing is fetched
    python scripts/check_install.py torch==2.11.0          # with these versions among it

Exit status 1 where a command fails. Needs hatchling, which `make setup` installs.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SMALL = (
    "+experiment=smoke",
    "run.steps=1",
    "data.batch_size=2",
    "rollout.max_tokens=8",
    "eval.benchmarks.smoke.limit=2",
)
COMMANDS = (
    ("--help",),
    ("train", *SMALL, "run.dir=runs/a"),
    ("ablate", *SMALL, "ablate.arms=[uniform,iw]", "ablate.seeds=1", "run.dir=runs/study"),
)
LEFT = ("runs/a/final/model.safetensors", "runs/a/metrics.jsonl", "runs/study/report.html")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--linked", action="store_true", help="take what is required from this environment")
    parser.add_argument("versions", nargs="*", help="requirements that choose versions, e.g. transformers==5.17.0")
    given = parser.parse_args()
    with TemporaryDirectory() as name:
        scratch = Path(name)
        wheel = build(scratch)
        environment = scratch / "environment"
        venv.create(environment, symlinks=True)
        python = environment / "bin" / "python"
        pip = (sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet")
        if given.linked:
            run(*pip, "--no-deps", str(wheel))
            link(environment)
        else:
            constraints = () if given.versions else ("--constraint", str(ROOT / "constraints.txt"))
            run(*pip, *constraints, str(wheel), *given.versions)
        use(environment / "bin" / "iwopd", scratch / "elsewhere")


def build(scratch: Path) -> Path:
    """The wheel, from the files of the sdist alone."""
    build = (sys.executable, "-m", "hatchling", "build", "--directory", str(scratch))
    run(*build, "--target", "sdist", cwd=ROOT)
    [sdist] = scratch.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(scratch / "source", filter="data")
    [source] = (scratch / "source").iterdir()
    run(*build, "--target", "wheel", cwd=source)
    [wheel] = scratch.glob("*.whl")
    return wheel


def required(requirement: Requirement, known: set[tuple[str, str]]) -> Iterator[metadata.Distribution]:
    """The installed distributions that a requirement means, with those that they require, each once."""
    extras = {*requirement.extras, ""}
    wanted = {(canonicalize_name(requirement.name), extra) for extra in extras} - known
    if not wanted:
        return
    known |= wanted
    try:
        found = metadata.distribution(requirement.name)
    except metadata.PackageNotFoundError:  # one of another machine, or left out of the lock
        return
    yield found
    for text in found.requires or ():
        each = Requirement(text)
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras):
            yield from required(each, known)


def link(environment: Path) -> None:
    """Have the package's own requirements in an environment, and nothing else."""
    [site] = (environment / "lib").glob("python*/site-packages")
    known = set[tuple[str, str]]()
    [own] = metadata.distributions(name="iwopd", path=[str(site)])
    for text in own.requires or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        for each in required(requirement, known):
            for top in {file.parts[0] for file in each.files or ()} - {"..", "__pycache__"}:
                place, there = site / top, Path(str(each.locate_file(top)))
                if not place.exists():
                    place.symlink_to(there)


def use(program: Path, folder: Path) -> None:
    """The commands, from an empty folder."""
    folder.mkdir()
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    for command in COMMANDS:
        run(str(program), *command, cwd=folder, env=environment)
        print("ok: iwopd", *command, flush=True)
    missing = [name for name in LEFT if not (folder / name).exists()]
    if missing:
        sys.exit(f"not written: {', '.join(missing)}")


def run(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}\n{done.stderr}")


if __name__ == "__main__":
    main()
