"""The commands and programs that README and the pages of docs/ show."""

import re
import shlex
from dataclasses import dataclass

from support.paths import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`((?:iwopd|python|make|pip) [^`…]+)`(?!`)")
MARK = re.compile(r"# needs (.+)")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language and its text."""

    page: str
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """One command line.

    Attributes:
        words: as a shell would split it, comments left out.
        needs: what the block it stands in says, in its first line, that it needs: "a GPU", "the hub", …
        runs: it stands in a block, not within a sentence.
    """

    page: str
    words: tuple[str, ...]
    needs: tuple[str, ...] = ()
    runs: bool = True

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def blocks(*languages: str) -> list[Block]:
    """Every fenced block in one of these languages; of any where none is named."""
    found = [Block(page.name, *match) for page in PAGES for match in FENCE.findall(page.read_text("utf-8"))]
    return [block for block in found if not languages or block.language in languages]


def commands() -> list[Command]:
    """Those of all blocks and sentences, each once."""
    found = [command for block in blocks("bash", "console") for command in _commands_of(block)]
    for page in PAGES:
        prose = FENCE.sub("", page.read_text("utf-8"))
        found += [Command(page.name, tuple(shlex.split(text)), runs=False) for text in INLINE.findall(prose)]
    return list({command.words: command for command in reversed(found)}.values())[::-1]  # blocks before sentences


def _commands_of(block: Block) -> list[Command]:
    text = block.text.replace("\\\n", " ")
    if block.language == "console":
        lines = [line[2:].rstrip(" …") for line in text.splitlines() if line.startswith("$ ")]
    else:
        lines = text.splitlines()
    mark = MARK.fullmatch(lines[0]) if lines else None
    needs = tuple(mark[1].split(", ")) if mark else ()
    split = [tuple(shlex.split(line, comments=True)) for line in lines]
    return [Command(block.page, words, needs) for words in split if words]
