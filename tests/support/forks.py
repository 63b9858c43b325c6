"""Processes of the program that start at once: forked from one that has imported torch and has done nothing with it.

Each is what `python -u -m MODULE …` would be, for the modules of `FORKED`: a process of its own, a child of the one
that started it, with streams, environment, folder and signals as given. What it starts of them itself is forked, too.
"""

import atexit
import ctypes
import gc
import io
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from support import compositions
from support.paths import TESTS

POSSIBLE = sys.platform == "linux"  # how a process becomes the child of the one that ordered it
PRELOADED = (
    *("torch", "torch.distributed.fsdp", "torch.distributed.checkpoint.state_dict", "transformers", "hydra"),
    *(
        "torch.distributed.run",
        "transformers.models.qwen3.modeling_qwen3",
        "transformers.models.auto.tokenization_auto",
    ),
    *("transformers.tokenization_utils_sentencepiece", "iwopd.commands.train", "iwopd.training.run"),
    *("iwopd.models.student", "iwopd.assembly.engines", "iwopd.assembly.training", "iwopd.parallel.ranks"),
)
FORKED = ("iwopd", "support.ranks", "torch.distributed.run")
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
LARGEST = 2**20  # bytes of an order


@dataclass(frozen=True)
class Order:
    """The process to make."""

    module: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: str
    new_session: bool
    ignored: Sequence[signal.Signals]
    parent: int


class Popen(subprocess.Popen):
    """subprocess's, which forks `[python, "-u", "-m", "iwopd", …]`."""

    def _execute_child(self, args: Sequence[str], *rest: Any) -> None:
        executable, option, *given = [each for each in args if each != "-u"] if len(args) > 2 else [*args, "", ""]
        if (executable, option) != (sys.executable, "-m") or given[0] not in FORKED:
            super()._execute_child(args, *rest)
            return
        cwd, env, streams, new_session = rest[4], rest[5], rest[9:15], rest[-2]
        sys.audit("subprocess.Popen", sys.executable, args, cwd, env)
        ignored = [each for each in signal.valid_signals() if signal.getsignal(each) == signal.SIG_IGN]
        environment, folder = dict(os.environ if env is None else env), str(cwd or Path.cwd())
        order = Order(given[0], given[1:], environment, folder, new_session, ignored, os.getpid())
        passed_on = [
            number if stream < 0 else stream for number, stream in enumerate((streams[0], streams[3], streams[5]))
        ]
        self.pid = _fork(order, passed_on) if _made else _order(order, passed_on)
        self._child_created = True
        self._close_pipe_fds(*streams)


_ordering = threading.Lock()
_made = False  # true in processes that were forked, which fork for themselves
_kept: set[str] = set()  # descriptors that the prepared process had before it was asked for anything


def _order(order: Order, streams: Sequence[int]) -> int:
    """Have a process forked, as a child of this one."""
    prctl = ctypes.CDLL(None).prctl
    with _ordering:
        connection = _prepared()
        prctl(SUBREAPER, 1, 0, 0, 0)  # the child of one that ends at once becomes ours
        try:
            socket.send_fds(connection, [pickle.dumps(order)], list(streams))
            return int(connection.recv(64))
        finally:
            prctl(SUBREAPER, 0, 0, 0, 0)


@cache
def _prepared() -> socket.socket:
    """Start the process that others are forked from; it ends with this one."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS), *os.environ.get("PYTHONPATH", "").split(":")])
    }
    command = [sys.executable, "-m", "support.forks", str(there.fileno())]
    process = subprocess.Popen(command, env=environment, pass_fds=[there.fileno()], start_new_session=True)
    there.close()

    def end() -> None:
        here.close()
        process.wait()

    atexit.register(end)
    return here


def _serve(connection: socket.socket) -> None:
    subprocess.Popen = Popen  # before torchrun's modules take it
    for name in PRELOADED:
        import_module(name)
    _warm_up()
    gc.freeze()  # pages stay shared
    _kept.update(os.listdir("/proc/self/fd"))
    _kept.discard(str(connection.fileno()))
    while True:
        message, streams, *_ = socket.recv_fds(connection, LARGEST, 3)
        if not message:
            return
        reading, writing = os.pipe()
        between = os.fork()
        if not between:
            os.write(writing, str(_fork(pickle.loads(message), streams)).encode())
            os._exit(0)
        os.waitpid(between, 0)
        connection.send(os.read(reading, 64))
        for descriptor in (reading, writing, *streams):
            os.close(descriptor)


def _warm_up() -> None:
    """What commands of tests make first, and always alike: Hydra's composition of their presets and the problems."""
    from hydra import compose, initialize_config_dir

    from iwopd.config import register_schemas
    from iwopd.launch import config_folder
    from iwopd.toy import toy_rows

    compositions.keep()
    register_schemas()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        for more in ([], ["parallel=fsdp"]):
            compose("config", ["+experiment=smoke", *more])
    for split in ("train", "test"):
        toy_rows("data.path", "toy://smoke", split)


def _fork(order: Order, streams: Sequence[int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status: Any = 1
    try:
        _become(order, streams)
        runpy.run_module(order.module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        _end(status if isinstance(status, int) else 1)


def _become(order: Order, streams: Sequence[int]) -> None:
    """What an exec would have done."""
    global _made
    _made = True
    while os.getppid() != order.parent:  # until the process between has ended
        time.sleep(0.001)
    atexit._clear()
    weakref.finalize._registry.clear()
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)) or number in order.ignored:
            signal.signal(number, signal.SIG_IGN if number in order.ignored else signal.SIG_DFL)
    if signal.SIGINT not in order.ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if order.new_session:
        os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for descriptor in {*os.listdir("/proc/self/fd")} - _kept:
        with suppress(OSError):  # that of the listing itself
            os.close(int(descriptor))
    os.chdir(order.folder)
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(order.environment)
    given = [each for each in order.environment.get("PYTHONPATH", "").split(os.pathsep) if each]
    sys.path[:] = [order.folder, *given, *(each for each in sys.path[1:] if each not in before)]
    sys.argv = [order.module, *order.arguments]
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(number, "w", closefd=False), "utf-8", write_through=True) for number in (1, 2)
    )
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()


def _end(status: int) -> NoReturn:
    """As the interpreter ends; nothing of the process that was forked is ended with it."""
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


if __name__ == "__main__":
    # One module, not a second one of the name __main__.
    import_module("support.forks")._serve(socket.socket(fileno=int(sys.argv[1])))
