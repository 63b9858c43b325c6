"""Names that become files or folders: what they may be, and what checkpoints are called."""

from pathlib import Path

MOST_BYTES = 128  # with what is put before and after it, a file's name has room for 255
REFUSED = frozenset("/\\|<>\"'`$&;*?!#{}^")  # of paths, shells, tables and markup


def name_problem(name: str) -> str | None:
    """Why `name` cannot be a file's or a folder's, and what to do; None where it can."""
    begins = name[:1].isalnum() or name[:1] == "_"
    if begins and name.isprintable() and not REFUSED & set(name) and name[-1] not in " .":
        if len(name.encode()) <= MOST_BYTES:
            return None
        return f"its name becomes a folder or a file; use at most {MOST_BYTES} bytes"
    return "its name becomes a folder or a file; begin with a letter or digit, and use letters, digits, and _ . + = : -"


def checkpoint_name(step: int) -> str:
    """The folder of the checkpoint of that step."""
    return f"step-{step:06d}"


def checkpoint_step(name: str) -> int | None:
    """The step of a checkpoint folder of this name; None for other names, such as a copy called step-best."""
    digits = name.removeprefix("step-")
    exact = digits.isascii() and digits.isdecimal() and checkpoint_name(int(digits)) == name
    return int(digits) if exact else None


def checkpoint_folders(folder: Path) -> list[Path]:
    """The folders in `folder` that have the name of a checkpoint, by their steps."""
    steps = [(checkpoint_step(entry.name), entry) for entry in folder.glob("step-*") if entry.is_dir()]
    known = [(step, entry) for step, entry in steps if step is not None]
    return [entry for _, entry in sorted(known)]
