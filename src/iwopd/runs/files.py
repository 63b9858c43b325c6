"""Files of a run: written whole and on the disk, or as they were; read although a crash left them damaged."""

import errno
import hashlib
import json
import logging
import math
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from iwopd.errors import RunFolderError

log = logging.getLogger(__name__)

DRAFT = ".draft-iwopd-"  # what files are called while they are written
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_whole(file: Path, text: str) -> None:
    """Write a file so that whenever the process or the machine stops it is whole, or as it was before.

    Raises:
        RunFolderError: it could not be written; it is as it was.
    """
    draft = file.with_name(DRAFT + file.name)
    try:
        with draft.open("wb") as stream:
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
        flush(file.parent)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise not_written(file, error) from error


def not_written(file: Path, error: OSError) -> RunFolderError:
    """What to say of a file that could not be written."""
    fix = "make room" if error.errno in FULL else "move away what is there, or check who may write there"
    return RunFolderError(f"{file}: cannot be written ({error.strerror or error}); {fix}, then run.resume=true")


def flush(entry: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    descriptor = os.open(entry, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(file: Path) -> str:
    """Hex digest of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_object(file: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is none, or it is damaged."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a jsonl file, those that are whole; none where there is no file.

    The last line may be torn, of a run at work or one that was killed; other damaged lines are counted in a warning.
    """
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError:
        return []
    rows = [_row(line) for line in lines]
    damaged = sum(row is None and bool(line) for row, line in zip(rows[:-1], lines[:-1], strict=True))
    if damaged:
        log.warning("%s: %d damaged lines are left out", file, damaged)
    return [row for row in rows if row is not None]


def first_and_last(file: Path) -> list[list[dict[str, Any]]]:
    """The rows of the first step in a jsonl file, and those of the last where that is another; none where there is no
    file. What lies between them is not read."""
    try:
        if not file.stat().st_size:
            return []
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            first, last = _of_one_step(_lines(content)), _of_one_step(_lines_backwards(content))
    except OSError:
        return []
    last.reverse()
    return [first, last] if first and last and first[0].get("step") != last[0].get("step") else [first] if first else []


def _of_one_step(lines: Iterator[bytes]) -> list[dict[str, Any]]:
    """Whole rows up to the first of another step."""
    found = list[dict[str, Any]]()
    for line in lines:
        row = _row(line)
        if row is None:
            continue
        if found and row.get("step") != found[0].get("step"):
            break
        found.append(row)
    return found


def _lines(content: mmap.mmap) -> Iterator[bytes]:
    start = 0
    while (end := content.find(b"\n", start)) >= 0:
        yield content[start:end]
        start = end + 1


def _lines_backwards(content: mmap.mmap) -> Iterator[bytes]:
    end = content.rfind(b"\n")
    while end >= 0:
        start = content.rfind(b"\n", 0, end) + 1
        yield content[start:end]
        end = start - 1


def whole_lines(file: Path, most: int, step: float = math.inf) -> int:
    """How many of the first `most` bytes of a jsonl file to keep: without what is torn at their end, and without
    rows of steps after `step`, which stand there where rows before them were lost."""
    end = min(most, file.stat().st_size)
    if not end:
        return 0
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = content.rfind(b"\n", 0, end) + 1
        while end:
            start = content.rfind(b"\n", 0, end - 1) + 1
            row = _row(content[start:end])
            if row is not None and row.get("step", 0) <= step:
                break
            end = start
    return end


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:  # of the encoding too
        return None
    return found if isinstance(found, dict) else None
