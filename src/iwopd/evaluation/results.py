"""What an evaluation leaves: every sample, as it comes, and the figures at the end.

    eval/<benchmark>.jsonl.zst    a line on what was asked, then one line per response
    eval/<benchmark>.json         settings, metrics, and a row per problem

Samples are appended in whole frames, each with a checksum. What a process killed in the middle of one leaves of it is
cut off by the next; a frame that was damaged since costs its own samples alone. What is missing is sampled again.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import zstandard

from iwopd.errors import RunFolderError
from iwopd.evaluation.evaluate import Evaluation, Graded, Outcome, details
from iwopd.runs.files import not_written, write_whole
from iwopd.types import Prompt

PART = 2**20  # bytes decompressed at one time


class SampleFile:
    """The samples of one benchmark; see `iwopd.evaluation.evaluate.Kept`.

    Args:
        path: the file; made with the first samples.
        asked: what the samples belong to; a file about something else is refused.
        samples: per problem.
        greedy: each problem also has a greedy answer.
        check: called before each writing; raises if the run's folder is somebody else's by now.

    Raises:
        RunFolderError: it cannot be read, or belongs to another model or other problems.
    """

    def __init__(
        self,
        path: Path,
        asked: Mapping[str, Any],
        *,
        samples: int,
        greedy: bool,
        check: Callable[[], None] = lambda: None,
    ):
        self.path = path
        self.check = check
        self.asked = dict(asked)
        self._wanted = {(sample, False) for sample in range(samples)} | ({(0, True)} if greedy else set())
        self._whole = 0  # bytes up to the end of the last whole frame
        self._has_header = False  # the line on what was asked is there
        self._known: dict[str, dict[tuple[int, bool], Outcome]] = {}
        for row in self._read():
            outcome = _outcome(row)
            self._known.setdefault(outcome.prompt_id, {})[outcome.sample, outcome.greedy] = outcome

    @property
    def kept(self) -> int:
        """Responses that are there, greedy ones aside."""
        return sum(not greedy for found in self._known.values() for _, greedy in found)

    def _read(self) -> Iterator[dict[str, Any]]:
        try:
            frames, self._whole = read_frames(self.path)
        except OSError as error:
            raise RunFolderError(f"{self.path}: cannot be read ({error.strerror}); move it away") from error
        rows = [json.loads(line) for frame in frames for line in frame.splitlines()]
        headers = [row for row in rows if not _is_sample(row)]
        if headers and headers[0] != self.asked:
            differing = [key for key, value in self.asked.items() if headers[0].get(key) != value]
            raise RunFolderError(
                f"{self.path}: its samples are of another evaluation ({', '.join(differing)} differ); "
                "choose another run.dir, or remove the file"
            )
        self._has_header = bool(headers)
        yield from filter(_is_sample, rows)

    def find(self, prompts: Sequence[Prompt]) -> list[Outcome] | None:
        """See `Kept`."""
        found = [self._known.get(prompt.id, {}) for prompt in prompts]
        if any(known.keys() != self._wanted for known in found):
            return None
        order = sorted(self._wanted, key=lambda which: (which[1], which[0]))
        return [known[which] for known in found for which in order]

    def add(self, sampled: Sequence[Graded], greedy: Sequence[Graded]) -> None:
        """See `Kept`; they are on the disk when this returns.

        Raises:
            RunFolderError: the disk is full.
        """
        rows = [*(_row(item, False) for item in sampled), *(_row(item, True) for item in greedy)]
        lines = [json.dumps(row, ensure_ascii=False) for row in ([] if self._has_header else [self.asked]) + rows]
        frame = zstandard.ZstdCompressor(write_checksum=True).compress(("\n".join(lines) + "\n").encode())
        self.check()
        try:
            self.path.parent.mkdir(exist_ok=True)
            with self.path.open("ab") as stream:
                stream.truncate(self._whole)
                stream.write(frame)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise not_written(self.path, error) from error
        self._whole += len(frame)
        self._has_header = True


def read_frames(path: Path) -> tuple[list[str], int]:
    """The whole frames of a file as text, and where the last of them ends, bytes. A frame that is damaged is left out;
    the next one is found by the number that every frame begins with."""
    content, frames, place, end = path.read_bytes() if path.exists() else b"", list[str](), 0, 0
    while (place := content.find(zstandard.FRAME_HEADER, place)) >= 0:
        text, size = _frame(content, place)
        if text is None:
            place += 1
        else:
            frames.append(text)
            place = end = place + size
    return frames, end


def _frame(content: bytes, place: int) -> tuple[str | None, int]:
    """The text of the frame at `place`, and its bytes; no text if it is damaged, or the file ends within it."""
    reader, fed = zstandard.ZstdDecompressor().decompressobj(), place
    parts = list[bytes]()
    try:
        while not reader.eof and fed < len(content):
            parts.append(reader.decompress(content[fed : fed + PART]))
            fed = min(fed + PART, len(content))
        text = b"".join(parts).decode()
    except (zstandard.ZstdError, UnicodeDecodeError):
        return None, 0
    return (text, fed - len(reader.unused_data) - place) if reader.eof else (None, 0)


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Every response of a samples file, one row each."""
    rows = [json.loads(line) for frame in read_frames(path)[0] for line in frame.splitlines()]
    return list(filter(_is_sample, rows))


def _is_sample(row: Mapping[str, Any]) -> bool:
    """False for the line on what was asked."""
    return "prompt_id" in row


def _row(item: Graded, greedy: bool) -> dict[str, Any]:
    rollout, verdict = item.rollout, item.verdict
    return {
        "prompt_id": rollout.prompt_id,
        "sample": rollout.sample,
        "greedy": greedy,
        "response": item.text,
        "tokens": len(rollout.response_ids),
        "finish_reason": rollout.finish_reason,
        "answer": verdict.answer,
        "reference": item.prompt.answer,
        "correct": verdict.correct,
        "timed_out": verdict.timed_out,
    }


def _outcome(row: dict[str, Any]) -> Outcome:
    return Outcome(
        prompt_id=row["prompt_id"],
        sample=row["sample"],
        greedy=row["greedy"],
        tokens=row["tokens"],
        truncated=row["finish_reason"] == "length",
        correct=row["correct"],
        timed_out=row["timed_out"],
    )


def write_results(file: Path, settings: Mapping[str, Any], evaluation: Evaluation) -> None:
    """The results of one benchmark.

    Raises:
        RunFolderError: the disk is full.
    """
    found = {
        "benchmark": evaluation.benchmark,
        "settings": dict(settings),
        "metrics": evaluation.metrics,
        **details(evaluation.outcomes),
    }
    try:
        file.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise not_written(file, error) from error
    write_whole(file, json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def problems_digest(prompts: Sequence[Prompt]) -> str:
    """Tells problems from others: their ids, token ids and answers."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps([prompt.id, prompt.ids, prompt.answer]).encode())
    return digest.hexdigest()
