"""A toy model that can read the answer in its prompt, made from one that cannot: for a teacher that is the student
itself. Asked for a problem alone it answers as badly as before; with the answer after the problem, right.
"""

from dataclasses import dataclass

from iwopd.toy.training import ModelRecipe


@dataclass(frozen=True)
class HintedRecipe:
    """Everything it is made from: the model it was before, and further steps, half of them on hinted problems."""

    base: ModelRecipe
    steps: int = 200
    lr: float = 2e-3
    seed: int = 7
    batch_size: int = 32


def hinted(prompt: str, answer: str) -> str:
    """A problem with its answer, as the model has learnt to read it."""
    return f"{prompt}\n{answer}"
