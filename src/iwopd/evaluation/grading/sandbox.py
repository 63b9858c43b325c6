"""Where programs that a model wrote run: a process of their own, with limits and, in namespaces, nothing of the user's.

Linux namespaces are entered by system calls, not through the program `unshare`: each program gets fresh ones, forked
from a process that has everything imported (milliseconds; a new interpreter takes tenths of a second), and neither its
path nor its version matters. Run as a script with a mode, this tries whether the kernel allows it. Only the standard
library is imported here.
docs/evaluation.md says what is confined and what is not.
"""

import contextlib
import ctypes
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

MODES = ("namespaces", "container", "none")
DISK = 64 * 2**20  # bytes that a program may write, all its files together; without namespaces, of each file
FILES = 4096  # files and folders that it may make
PROCESSES = 32  # processes and threads at one time
OPEN_FILES = 64
OTHER = 65534  # the user, and the group, that a program becomes where root grades: nobody
TRY = 60.0  # seconds

NAMESPACES = 0x00020000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000  # mounts, IPC, users, processes, network
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
NOATIME, NODIRATIME, RELATIME = 1024, 2048, 1 << 21
KEPT = {2: NOSUID, 4: NODEV, 8: NOEXEC, 1024: NOATIME, 2048: NODIRATIME, 4096: RELATIME}  # statvfs's flags as mount's
DETACH = 2
SET_PARENT_DEATH, SET_DUMPABLE, SET_NO_NEW_PRIVILEGES, SET_CHILD_SUBREAPER = 1, 4, 38, 36  # of prctl
CAPABILITIES = 0x20080522  # version of capset's format

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}


def refusal(mode: str) -> str | None:
    """Why this machine cannot confine programs as `mode` says; None where it can. It is tried, in another process."""
    if mode == "none":
        return None
    if mode == "namespaces" and not sys.platform.startswith("linux"):
        return f"{sys.platform} has none"
    try:
        command = [sys.executable, "-I", __file__, mode]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRY, env=ENVIRONMENT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it does not start"])[-1]


def start(connection: int, body: Callable[[], None], mode: str, folder: str, seconds: float) -> int:
    """Fork a process that is confined and then runs `body`; its process id.

    `body` sees no descriptor but /dev/null and, as 3, the connection. Where something cannot be confined it does not
    run, and {"problem": "…"} is written to the connection. With namespaces, killing the process ends all it started.

    Args:
        connection: a descriptor; closed here.
        folder: an empty folder, the program's; not used with namespaces.
        seconds: of processor time.
    """
    mine, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        mine.close()
        _child(connection, theirs, body, mode, folder, seconds)
    theirs.close()
    with mine:
        if mode == "namespaces" and mine.recv(1):  # it has a namespace of users
            try:
                _map_users(pid)
                mine.send(b"m")
            except OSError as error:
                _tell(connection, f"user namespaces: {error.strerror}")
    os.close(connection)
    return pid


def _child(
    connection: int, parent: socket.socket, body: Callable[[], None], mode: str, folder: str, seconds: float
) -> None:
    """Never returns."""
    leave = os._exit
    try:
        die_with_parent()
        _linux("prctl", SET_DUMPABLE, 1, 0, 0, 0)  # its users can be mapped
        nobody = _enter(parent) if mode == "namespaces" else mode == "container" and _may_be_nobody()
        _limit(connection, mode, folder, seconds)
        if nobody and mode == "container":
            os.chown(folder, OTHER, OTHER)
        _drop_privileges(nobody)
    except OSError as error:
        _tell(connection, str(error.args[-1]))
        leave(1)
    except BaseException:
        leave(1)
    try:
        body()
    finally:
        leave(0)


def _tell(connection: int, problem: str) -> None:
    with contextlib.suppress(OSError):
        os.write(connection, json.dumps({"problem": problem}).encode() + b"\n")


def die_with_parent() -> None:
    """Be killed when the thread that started this process ends."""
    _linux("prctl", SET_PARENT_DEATH, signal.SIGKILL, 0, 0, 0)


def close_to_others() -> None:
    """Nothing that runs as the same user may look into this process, its memory or its descriptors, through /proc."""
    _linux("prctl", SET_DUMPABLE, 0, 0, 0, 0)


def adopt() -> None:
    """Become the parent of descendants whose own has ended."""
    _linux("prctl", SET_CHILD_SUBREAPER, 1, 0, 0, 0)


# ---------------------------------------------------------------------------------------------- namespaces


def _enter(parent: socket.socket) -> bool:
    """Into namespaces of its own, as their first process; what was before waits. True: there is a nobody to become."""
    _call("unshare", NAMESPACES, said="namespaces")
    parent.send(b"u")
    if not parent.recv(1):
        os._exit(1)  # the parent has reported why
    try:
        Path("/proc/sys/user/max_user_namespaces").write_text("0")  # within these: none in which it were root again
    except OSError as error:
        raise OSError(f"{error.filename}: {error.strerror}") from None
    first = os.fork()
    if first:
        parent.close()
        os.closerange(3, 2**16)  # the connection ends with the program
        os.waitpid(first, 0)
        os._exit(0)
    die_with_parent()
    several = len(Path("/proc/self/uid_map").read_text().splitlines()) > 1
    _see_only(visible())
    return several


def _map_users(pid: int) -> None:
    """Root within is whoever we are; where that is root itself, nobody is there too, to become."""
    uid, gid = os.geteuid(), os.getegid()
    alone = {"uid_map": f"0 {uid} 1", "setgroups": "deny", "gid_map": f"0 {gid} 1"}
    both = {"uid_map": f"0 0 1\n{OTHER} {OTHER} 1", "gid_map": f"0 0 1\n{OTHER} {OTHER} 1"}
    for maps in [both, alone] if uid == 0 else [alone]:
        try:
            for name, content in maps.items():
                Path(f"/proc/{pid}/{name}").write_text(content + "\n")
            return
        except OSError:  # root of a namespace that has no such user
            if maps is alone:
                raise


def visible() -> list[str]:
    """The folders that a program sees, read-only: the system's libraries, Python's, and installed packages."""
    python = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.join(sys.base_prefix, "lib")]
    packages = [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
    found = {path for folder in (*python, *packages) for path in (os.path.abspath(folder), os.path.realpath(folder))}
    return [path for path in (*SYSTEM, *sorted(found, key=len), "/etc/ld.so.cache") if os.path.exists(path)]


def _see_only(paths: list[str]) -> None:
    """A new root: a file system in memory, of limited size, with these read-only in it, a few devices, and no /proc."""
    with open("/proc/self/mountinfo") as mounts:
        root = "/proc"  # certainly there, and nothing that is needed from here on
        _mount(None, "/", None, REC | PRIVATE)
        _mount("tmpfs", root, "tmpfs", NOSUID | NODEV, f"size={DISK},nr_inodes={FILES},mode=755")
        shown: list[str] = []
        for path in paths:
            if os.path.islink(path) and path in SYSTEM:
                os.symlink(os.readlink(path), root + path)
            elif not any(path.startswith(above + "/") for above in shown):
                _bind(path, root)
                shown.append(path)
        for line in list(mounts):
            point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split()[4])
            if point.startswith(root + "/") and os.path.exists(point):  # not what the new root has covered
                kept = sum(flag for bit, flag in KEPT.items() if os.statvfs(point).f_flag & bit)
                _mount(None, point, None, REMOUNT | BIND | RDONLY | NOSUID | NODEV | kept)
    os.mkdir(f"{root}/dev")
    for path in filter(os.path.exists, DEVICES):
        _bind(path, root)
    for name in ("/tmp", "/dev/shm"):
        os.makedirs(root + name, exist_ok=True)
        os.chmod(root + name, 0o1777)
    os.chdir(root)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", DETACH)
    os.chdir("/tmp")


def _bind(path: str, root: str) -> None:
    if os.path.isdir(path):
        os.makedirs(root + path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        os.close(os.open(root + path, os.O_CREAT, 0o644))
    _mount(path, root + path, None, BIND | REC)


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    encoded = [None if each is None else os.fsencode(each) for each in (source, target, kind)]
    _call("mount", *encoded, ctypes.c_ulong(flags), data.encode() or None, said=f"mount {target}")


# ---------------------------------------------------------------------------------------------- limits


def _limit(connection: int, mode: str, folder: str, seconds: float) -> None:
    """What holds in every mode."""
    os.setsid()
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    if connection != 3:
        os.dup2(connection, 3)
    os.closerange(4, 2**16)
    home = "/tmp" if mode == "namespaces" else folder
    os.chdir(home)
    os.environ.clear()
    os.environ.update({**ENVIRONMENT, "HOME": home, "TMPDIR": home})
    tempfile.tempdir = None
    for what, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, DISK),
        (resource.RLIMIT_CPU, int(seconds) + 1),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_NPROC, PROCESSES),
    ):
        most = resource.getrlimit(what)[1]
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(what, (value, value))


def _may_be_nobody() -> bool:
    """We are root, and Python's library does not lie in a folder, such as /root, that is closed to others."""
    library = Path(sysconfig.get_path("stdlib")).resolve()
    return os.geteuid() == 0 and all(folder.stat().st_mode & 1 for folder in (library, *library.parents))


def _drop_privileges(nobody: bool) -> None:
    if nobody:
        os.setgroups([])
        os.setresgid(OTHER, OTHER, OTHER)
        os.setresuid(OTHER, OTHER, OTHER)
    _linux("capset", (ctypes.c_uint32 * 2)(CAPABILITIES, 0), (ctypes.c_uint32 * 6)())
    _linux("prctl", SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    die_with_parent()  # a change of user forgets it
    close_to_others()


def _linux(name: str, *arguments: object) -> None:
    if sys.platform.startswith("linux"):
        _call(name, *arguments)


def _call(name: str, *arguments: object, said: str = "") -> None:
    """A function of the C library that returns 0, or OSError."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{said or name}: {os.strerror(ctypes.get_errno())}")


def main() -> None:
    """Confine a process once. Argument: the mode; says on standard error why it cannot be done."""
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryDirectory(prefix="iwopd-code-") as folder:
        pid = start(theirs.detach(), _try, sys.argv[1], folder, TRY)
        said = json.loads(ours.makefile().readline() or '{"problem": "it ends at once"}')
        os.waitpid(pid, 0)
    sys.exit(said.get("problem"))


def _try() -> None:
    try:
        __import__("colorsys")  # any module that is not imported yet
    except ImportError as error:
        _tell(3, f"{error}, as user {os.geteuid()}; are Python's own files readable to others?")
    os.write(3, b"{}\n")


if __name__ == "__main__":
    main()
