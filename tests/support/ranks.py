"""Real processes that form a world: a function of a test module, called on each of them."""

import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from support import forks
from support.paths import REPOSITORY as ROOT


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """As torchrun would set it."""
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return os.environ | shared | own | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT / "src")])}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def on_ranks(
    count: int, function: Callable[..., Any], folder: Path, *arguments: Any, timeout: float = 240
) -> list[Any]:
    """What `function(*arguments)` returns on each of `count` processes, in the order of ranks.

    Args:
        folder: for files that carry results.
    """
    port = free_port()
    call = pickle.dumps((function.__module__, function.__qualname__, arguments))
    (folder / "call").write_bytes(call)
    start = forks.Popen if forks.POSSIBLE else subprocess.Popen
    processes = [
        start([sys.executable, "-m", "support.ranks", str(folder)], env=environment(rank, count, port))
        for rank in range(count)
    ]
    try:
        statuses = [process.wait(timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert statuses == [0] * count, f"exit statuses {statuses}"
    return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(count)]


if __name__ == "__main__":
    where = Path(sys.argv[1])
    module, name, given = pickle.loads((where / "call").read_bytes())
    result = getattr(import_module(module), name)(*given)
    (where / f"result-{os.environ['RANK']}").write_bytes(pickle.dumps(result))
