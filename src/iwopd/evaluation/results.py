"""What an evaluation leaves: every sample, as it comes, and the figures at the end.

    eval/<benchmark>.jsonl.zst    a line on what was asked, then one line per response
    eval/<benchmark>.json         settings, metrics, and a row per problem

Samples are appended in whole frames, each with a checksum. What a process killed in the middle of one leaves of it is
cut off by the next, and what it held is sampled again.
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
        self._whole = 0  # bytes of whole frames
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
        lines = [json.loads(line) for frame in frames for line in frame.splitlines()]
        if lines and lines[0] != self.asked:
            differing = [key for key, value in self.asked.items() if lines[0].get(key) != value]
            raise RunFolderError(
                f"{self.path}: its samples are of another evaluation ({', '.join(differing)} differ); "
                "choose another run.dir, or remove the file"
            )
        yield from lines[1:]

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
        lines = [json.dumps(row, ensure_ascii=False) for row in ([] if self._whole else [self.asked]) + rows]
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


def read_frames(path: Path) -> tuple[list[str], int]:
    """The whole frames of a file as text, and how many bytes they take; what is damaged behind them is left out."""
    frames, place = list[str](), 0
    content = path.read_bytes() if path.exists() else b""
    while place < len(content):
        reader = zstandard.ZstdDecompressor().decompressobj()
        try:
            text = reader.decompress(content[place:]).decode()
        except (zstandard.ZstdError, UnicodeDecodeError):
            break
        if not reader.eof:
            break
        frames.append(text)
        place = len(content) - len(reader.unused_data)
    return frames, place


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Every response of a samples file, one row each."""
    lines = [json.loads(line) for frame in read_frames(path)[0] for line in frame.splitlines()]
    return lines[1:]


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
