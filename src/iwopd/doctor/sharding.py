"""Several processes that share a model (parallel=fsdp): what each keeps of it, and what it gathers for a pass.

As FSDP2 does it, and `iwopd.models.sharding` asks it to: a block of layers is whole while it computes, the one that
comes next is on its way, and the rest of the model, embeddings and head, is whole from forward to backward.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn

from iwopd import assembly
from iwopd.config import Config, FsdpConfig
from iwopd.doctor.machine import Machine
from iwopd.doctor.memory import BYTES, Term, count
from iwopd.models.language_model import LanguageModel
from iwopd.models.sharding import blocks

AT_ONCE = 2  # blocks that are whole: the one that computes, and the next
REDUCED = 4  # bytes of a number in sums of gradients over processes


@dataclass(frozen=True)
class Parts:
    """Parameters that are gathered at one time.

    Attributes:
        block: of the largest block of layers.
        rest: outside of all blocks.
        block_trained, rest_trained: of them, those that get gradients.
        head: of the rest, embeddings and head.
    """

    block: int
    rest: int
    block_trained: int
    rest_trained: int
    head: int

    @classmethod
    def of(cls, lm: LanguageModel) -> "Parts":
        """Those of a model."""
        found = [list(block.parameters()) for block in blocks(lm)]
        inside = {parameter for block in found for parameter in block}
        rest = [parameter for parameter in lm.parameters() if parameter not in inside]
        largest = max(found, key=_numbers, default=[])
        head = {lm.model.get_input_embeddings().weight, lm.output_embeddings.weight}
        return cls(
            _numbers(largest), _numbers(rest), _numbers(_trained(largest)), _numbers(_trained(rest)), _numbers(head)
        )


@dataclass(frozen=True)
class Sharding:
    """How the processes of a run share its models; by default, one process that has them whole.

    Attributes:
        local: processes of each machine.
        machines: how many.
        shards: processes that share one copy.
        gather: dtype of gathered weights; None with one process.
        reshard: gathered blocks are freed after their forward.
        teacher: models that only score are shared too.
    """

    local: int = 1
    machines: int = 1
    shards: int = 1
    gather: str | None = None
    reshard: bool = True
    teacher: bool = False

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return self.local * self.machines

    def part(self, term: Term) -> Term:
        """What each process keeps of something."""
        if self.shards == 1:
            return term
        how = f"{term.how}, over {self.shards} processes"
        return replace(term, bytes=term.bytes / self.shards, how=how, shards=self.shards)

    def share(self, sequences: int) -> int:
        """The most of `sequences` that one process gets."""
        return -(-sequences // self.ranks)

    def gathered(self, parts: Parts, parameters: int, each: int, *, whole: bool = False) -> list[Term]:
        """Weights that are whole during a pass, beside the part that is kept.

        Args:
            each: bytes of a weight, where nothing else is gathered.
            whole: all of them are gathered at one time.
        """
        if self.ranks == 1:
            return []
        each = BYTES[self.gather] if self.gather else each
        if whole or not self.reshard:
            return [Term("gathered weights", parameters * each, f"{count(parameters)} × {each} bytes")]
        how = f"({AT_ONCE} blocks × {count(parts.block)} + {count(parts.rest)}) × {each} bytes"
        return [Term("gathered weights", (AT_ONCE * parts.block + parts.rest) * each, how)]

    def reducing(self, parts: Parts, each: int) -> list[Term]:
        """Gradients of a block and of the rest, whole until they are summed over processes and divided."""
        if self.ranks == 1:
            return []
        each = BYTES[self.gather] if self.gather else each
        how = f"{count(parts.block_trained)} × ({each} + {REDUCED}) bytes, {count(parts.rest_trained)} × {each} bytes"
        found = parts.block_trained * (each + REDUCED) + parts.rest_trained * each
        return [Term("gradients being summed", found, how)]

    def scorer(self, term: Term, parts: Parts, each: int) -> list[Term]:
        """What each process has of a model that only scores; its embeddings and head stay whole, blocks are gathered.

        Args:
            term: its weights.
        """
        if self.ranks == 1 or not self.teacher:
            return [term]
        head = parts.head * each
        whole = head + (AT_ONCE * parts.block + parts.rest - parts.head) * each
        how = f"embeddings, head and {AT_ONCE} blocks × {count(parts.block)}"
        return [self.part(replace(term, bytes=term.bytes - head)), Term(f"{term.what}, gathered", whole, how)]


def sharding(config: Config, machine: Machine) -> Sharding:
    """Of a run: each of the machines has a process per GPU, or as many as `parallel.processes` says."""
    parallel = config.parallel
    if not isinstance(parallel, FsdpConfig):
        return Sharding()
    local = parallel.processes or max(1, machine.gpus)
    ranks = local * config.doctor.machines
    if ranks == 1:
        return Sharding()
    return Sharding(
        local=local,
        machines=config.doctor.machines,
        shards=max(1, ranks // parallel.replicate),
        gather=assembly.engine_dtype(config, parallel.gather),
        reshard=parallel.reshard,
        teacher=parallel.teacher == "sharded",
    )


def _numbers(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _trained(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]
