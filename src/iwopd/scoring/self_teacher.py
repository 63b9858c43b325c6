"""A teacher that is the student itself and follows it: by a moving average of its weights, or with these weights.

With a prompt of its own it knows more than the student does (OPSD, arXiv 2601.18734; SDFT, arXiv 2601.19897; SDPO,
arXiv 2601.20802). One that stays as the student was before training is an ordinary teacher.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from iwopd.models.language_model import LanguageModel
from iwopd.models.sharding import as_held
from iwopd.models.student import Student, named_weights, write_model
from iwopd.numerics.logprobs import Head
from iwopd.scoring.hf import HfTeacher


@dataclass(eq=False)
class AverageTeacher(HfTeacher):
    """See `Teacher`. Its weights begin as the student's, and follow them step by step.

    Args:
        decay: what a step leaves of the average, share.
        key: its section of the config, which its folder in checkpoints is called by.
    """

    decay: float = field(kw_only=True)
    key: str = field(kw_only=True)

    @torch.no_grad()
    def follow(self, student: Student) -> None:
        """θ_T ← decay · θ_T + (1 − decay) · θ, of each parameter by itself."""
        theirs = dict(student.model.named_parameters())
        for name, own in self.model.model.named_parameters():
            new = as_held(theirs[name].detach(), own)  # a teacher may be whole where the student is sharded
            own.mul_(self.decay).add_(new.to(own.device, own.dtype), alpha=1 - self.decay)

    def save(self, folder: Path) -> None:
        """A model in HF format, which a resumed run begins from.

        Raises:
            ModelError: what was written does not load.
        """
        write_model(self.model.model, named_weights(self.model.model), folder / self.key)


@dataclass(eq=False)
class CurrentTeacher(HfTeacher):
    """See `Teacher`. Its weights are the student's own, wherever these stand.

    Args:
        model: the student's; trained elsewhere, and read here.
    """

    def __post_init__(self) -> None:
        trained = [parameter for parameter in self.model.model.parameters() if parameter.requires_grad]
        super().__post_init__()
        for parameter in trained:
            parameter.requires_grad_(True)

    @contextmanager
    def loaded(self) -> Iterator[LanguageModel]:
        """The student, in evaluation mode; it stays where it is."""
        self.model.model.eval()
        yield self.model

    def head(self) -> Head:
        """The student's own, without a gradient: what the teacher says is given."""
        head = self.model.head

        def detached(states: Tensor) -> Tensor:
            with torch.no_grad():
                return head(states)

        return detached
