"""Programs that attack whatever grades them, and programs that tell what they see."""

import os
import sys
from pathlib import Path

from iwopd.types import Prompt
from support.programs import prompt_of

SECRET = "hf_tests_only"
RIGHT = "def add(a, b):\n    return a + b"


def probing(wanted: object) -> dict:
    """A problem that a program solves by returning what it sees, so that a test can tell what that is."""
    return {
        "task_id": "HumanEval/903",
        "prompt": "def probe():\n",
        "entry_point": "probe",
        "canonical_solution": "",
        "test": f"found = probe()\nassert found == {wanted!r}, found\n",
    }


def answered(row: dict, code: str) -> tuple[str, Prompt]:
    return (f"```python\n{code}\n```\n", prompt_of(row))


FORGED = """b'{"status": "pass", "code": "", "verdict": true, "value": 3, "ready": true, "names": ["add"]}\\n' * 4"""
HUNT = """
import gc, sys
def hunt():
    wanted, found, seen = "".join(["zq-mar", "ker"]), [], gc.get_objects()
    frame = sys._getframe(1)
    while frame:
        seen += [frame.f_locals, frame.f_globals]
        frame = frame.f_back
    for each in seen:
        if type(each) is dict:
            each = [*each.keys(), *each.values()]
        if type(each) in (list, tuple, set):
            found += [item for item in list(each) if type(item) in (str, bytes) and wanted in str(item)]
    return found
"""
ATTACKS = {
    "equal to everything": """
class Yes(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = int.__hash__
def add(a, b):
    return Yes(-7)
""",
    "a list that says it is equal": """
class Yes(list):
    def __eq__(self, other): return True
def add(a, b):
    return Yes()
""",
    "close to everything": """
import numpy
class Yes(numpy.ndarray):
    def __eq__(self, other): return True
    def __array_ufunc__(self, *rest, **more): return True
def add(a, b):
    return numpy.zeros(1).view(Yes)
""",
    "a verdict to every descriptor": f"""
import posix
def add(a, b):
    for descriptor in range(3, 256):
        try:
            posix.write(descriptor, {FORGED})
        except OSError:
            pass
    return -7
""",
    "garbage to every descriptor": """
import posix
def add(a, b):
    for descriptor in range(256):
        try:
            posix.write(descriptor, b"\\xff\\x00garbage")
        except OSError:
            pass
    return -7
""",
    "a verdict through /proc": f"""
import posix
def add(a, b):
    for process in [1, *range(2, 40), posix.getppid(), "self"]:
        for descriptor in range(32):
            try:
                opened = posix.open(f"/proc/{{process}}/fd/{{descriptor}}", posix.O_WRONLY)
                posix.write(opened, {FORGED})
            except OSError:
                pass
    return -7
""",
    "leaves at import": "import os\nLEFT = os._exit(0)\ndef add(a, b):\n    return LEFT or 3",
    "leaves politely": "import sys\ndef add(a, b):\n    raise SystemExit(0)",
    "stops whoever iterates": "def add(a, b):\n    raise StopIteration",
    "patched builtins": """
import builtins, json, pickle
def add(a, b):
    yes = lambda *rest, **more: True
    json.loads = json.dumps = pickle.loads = builtins.isinstance = builtins.all = yes
    builtins.AssertionError = ValueError
    return -7
""",
    "patched numpy": """
import numpy
PATCHED = setattr(numpy, "allclose", lambda *rest, **more: True)
def add(a, b):
    return PATCHED or -7.0
""",
    "patched evalplus": """
import sys
def add(a, b):
    for name, module in list(sys.modules.items()):
        if name.startswith(("evalplus", "iwopd")):
            for key, value in list(vars(module).items()):
                if callable(value):
                    setattr(module, key, lambda *rest, **more: "pass")
    return -7
""",
    "shadows what tests use": (
        "def zip(*rest):\n    return []\nenumerate = zip\nAssertionError = ValueError\n"
        "def check(*rest):\n    return zip\n"
        "def add(a, b):\n    return -7 if enumerate and AssertionError and check else 0"
    ),
    "a huge answer": "def add(a, b):\n    return 'x' * 2**26",
    "a deep answer": """
def add(a, b):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    return deep
""",
    "an answer within itself": "def add(a, b):\n    mine = []\n    mine.append(mine)\n    return mine",
    "raises what it likes": "def add(a, b):\n    raise type('AssertionError', (BaseException,), {})()",
}

# ---------------------------------------------------------------------------------------------- the user's

# Where Python or its packages are below /tmp, the way to them is there.
BELOW_TMP = {path.parts[2] for path in (Path(sys.prefix), Path(sys.base_prefix)) if path.parts[1:2] == ("tmp",)}

HOME = str(Path.home())
FACTS: dict[str, tuple[str, object]] = {
    "environment": (
        "import os\ndef probe():\n    return sorted(set(os.environ) - {'OMP_NUM_THREADS'})",
        ["HOME", "LANG", "PATH", "PYTHONDONTWRITEBYTECODE", "TMPDIR"],
    ),
    "environment of the process's memory": (
        f"""
import ctypes
def probe():
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_char_p
    names = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
    found = []
    while names[len(found)]:
        found.append(names[len(found)])
    return [each for each in found if b"{SECRET[:6]}" in each]
""",
        [],
    ),
    "home": (f"import os\ndef probe():\n    return os.path.exists({HOME + '/.bashrc'!r})", False),
    "repository": (f"import os\ndef probe():\n    return os.path.exists({str(Path(__file__))!r})", False),
    "files": (
        "import os\ndef probe():\n    return sorted(set(os.listdir('/')) - {'usr', 'bin', 'sbin', 'lib', 'lib32', "
        f"'lib64', 'libx32', 'nix', 'gnu', 'etc'}} - {set(Path(sys.base_prefix).parts[1:2])!r} - "
        f"{set(Path(sys.prefix).parts[1:2])!r} - {{'tmp', 'dev'}}), "
        f"sorted(set(os.listdir('/tmp')) - {BELOW_TMP!r}), os.listdir('/dev/shm')",
        ([], [], []),
    ),
    "processes": (
        """
import os
def probe():
    try:
        return [each for each in os.listdir("/proc") if each.isdigit()]
    except OSError:
        return []
""",
        [],
    ),
    "privileges": (
        """
import ctypes
def probe():
    libc = ctypes.CDLL(None, use_errno=True)
    tried = [libc.unshare(0x10000000), libc.unshare(0x20000), libc.mount(b"t", b"/tmp", b"tmpfs", 0, None)]
    return [*tried, libc.umount2(b"/usr", 2), libc.setuid(0) if libc.getuid() else -1, libc.sethostname(b"x", 1)]
""",
        [-1] * 6,
    ),
    "installed packages": (
        f"""
import io, numpy
def probe():
    found = []
    for path in (numpy.__file__, {os.__file__!r}, "/usr/written"):
        try:
            io.open(path, "a")
            found.append(path)
        except OSError:
            pass
    return found
""",
        [],
    ),
}
