"""Questions and answers between processes: one JSON object a line, each with the number of its question, never trusted.

What is no such line, is too long, is one line too many or answers another question is `Broken`: it decides nothing.
"""

import json
import os
import secrets
import select
import time
from collections.abc import Callable, Mapping
from typing import Any

Message = dict[str, Any]
Fields = Mapping[str, type | tuple[type, ...]]

LONGEST = 32 * 2**20  # bytes of an answer


class Broken(Exception):
    """The other side has ended, or said what is no answer to the question."""


class Late(Broken):
    """No answer in time."""


class Lines:
    """One end of a conversation.

    Args:
        reading, writing: descriptors, or twice a socket's.
        longest: bytes of a line that are accepted; None for any number.
    """

    def __init__(self, reading: int, writing: int, longest: int | None = LONGEST):
        self.reading, self.writing, self.longest = reading, writing, longest
        self._begun = bytearray()

    def ask(self, question: Message, fields: Fields, seconds: float | None = None) -> Message:
        """The answer to a question: an object with these fields, of these types.

        Raises:
            Broken: it is something else.
            Late: it takes longer than `seconds`.
        """
        limit = None if seconds is None else time.monotonic() + seconds
        number = secrets.token_hex(8)
        self.send({**question, "id": number}, limit)
        answer = self.receive(limit)
        if self._begun:
            raise Broken("more than one line")
        if answer.get("id") != number:
            raise Broken("an answer to nothing that was asked")
        if not all(isinstance(answer.get(name), kind) for name, kind in fields.items()):
            raise Broken(f"an answer without {', '.join(fields)}")
        return answer

    def serve(self, answer: Callable[[Message], Message]) -> None:
        """Answer questions until the other side has ended."""
        while True:
            try:
                question = self.receive()
            except Broken:
                return
            self.send({**answer(question), "id": question.get("id")})

    @property
    def quiet(self) -> bool:
        """Nothing was said that nobody asked for, and the other side has not ended."""
        return not self._begun and not _ready(self.reading, select.POLLIN, 0)

    def send(self, message: Message, limit: float | None = None) -> None:
        """One line, by the time `limit` of `time.monotonic`.

        Raises:
            Broken: nobody reads it.
            Late: not in time.
        """
        left = memoryview(json.dumps(message, default=str).encode() + b"\n")
        while left:
            if limit is not None and not _ready(self.writing, select.POLLOUT, limit - time.monotonic()):
                raise Late("does not read")
            try:
                # As much as a pipe takes at once, when it is ready, so that the wait cannot be longer than `limit`.
                left = left[os.write(self.writing, left if limit is None else left[: select.PIPE_BUF]) :]
            except OSError as error:
                raise Broken(f"does not read: {error.strerror}") from None

    def receive(self, limit: float | None = None) -> Message:
        """The next line, by the time `limit` of `time.monotonic`.

        Raises:
            Broken: it is none, or what is read is no JSON object, or too long.
            Late: not in time.
        """
        searched = 0
        while (end := self._begun.find(b"\n", searched)) < 0:
            searched = len(self._begun)
            if self.longest is not None and searched > self.longest:
                raise Broken(f"a line of more than {self.longest} bytes")
            if limit is not None and not _ready(self.reading, select.POLLIN, limit - time.monotonic()):
                raise Late("says nothing")
            try:
                chunk = os.read(self.reading, 2**16)
            except OSError as error:
                raise Broken(f"cannot be read: {error.strerror}") from None
            if not chunk:
                raise Broken("has ended")
            self._begun += chunk
        line = bytes(self._begun[:end])
        del self._begun[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise Broken("no JSON") from None
        if not isinstance(message, dict):
            raise Broken("no JSON object")
        return message


def _ready(descriptor: int, event: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, event)
    return seconds >= 0 and bool(poll.poll(seconds * 1000))
