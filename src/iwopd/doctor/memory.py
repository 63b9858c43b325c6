"""Memory as sums of named terms, bytes; the arithmetic alone, no model and no config."""

import math
from dataclasses import dataclass, field

from iwopd.machine.runtime import PRIMITIVE_BYTES, PRIMITIVES

COMPILED = "compiled products"
GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Of a process that uses CUDA: its context, the libraries' kernels and workspaces; not in PyTorch's count of tensors.
CUDA_CONTEXT = 1.0 * GIB


@dataclass(frozen=True)
class Term:
    """One line of an estimate: what it is, how many bytes, and the arithmetic behind them; `shards` are the processes
    that it is divided over."""

    what: str
    bytes: float
    how: str = ""
    shards: int = 1


@dataclass
class Place:
    """What one stage needs in one place: a GPU's memory, or the host's.

    Attributes:
        stage: rollout, score or update.
        where: for the reader, e.g. "GPU 0" or "host memory".
        limit: bytes there; None where they are not known.
        unknown: why more is needed than the terms say; None where they are all.
    """

    stage: str
    where: str
    limit: float | None
    terms: list[Term] = field(default_factory=list[Term])
    unknown: str | None = None

    @property
    def total(self) -> float:
        """Bytes of all terms."""
        return sum(term.bytes for term in self.terms)

    def fewest(self, share: float) -> int | None:
        """Over how many processes what is divided must be, for a `share` of the limit to hold all; None where what is
        not divided is too much for that."""
        whole = sum(term.bytes for term in self.terms if term.shards == 1)
        divided = sum(term.bytes * term.shards for term in self.terms if term.shards > 1)
        room = share * (self.limit or 0.0) - whole
        return math.ceil(divided / room) if room > 0 else None


def count(number: float) -> str:
    """A number of parameters or FLOPs, short: 596.0 M, 4.02 B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.{2 if unit in 'TB' else 1}f} {unit}"
    return f"{number:.0f}"


def size(number: float) -> str:
    """Bytes, short: 15.0 GiB, 38 MiB, 331 KiB."""
    for unit, step in (("GiB", GIB), ("MiB", 2**20)):
        if number >= step:
            return f"{number / step:,.{1 if unit == 'GiB' else 0}f} {unit}"
    return f"{number / 2**10:.0f} KiB"


def weights(parameters: int, each: int, what: str = "weights") -> Term:
    """`parameters` numbers of `each` bytes."""
    return Term(what, parameters * each, f"{count(parameters)} × {each} bytes")


def gradients(trained: int, each: int) -> Term:
    """One number per trained parameter."""
    return Term("gradients", trained * each, f"{count(trained)} × {each} bytes")


def adam(trained: int, each: int) -> Term:
    """Two moments per trained parameter, from the first optimiser step on."""
    return Term("Adam's moments", 2 * trained * each, f"2 × {count(trained)} × {each} bytes")


def compiled_products() -> Term:
    """What oneDNN keeps, once a run has met as many lengths as it may keep."""
    how = f"{PRIMITIVES} × {size(PRIMITIVE_BYTES)}, kept by oneDNN"
    return Term(COMPILED, PRIMITIVES * PRIMITIVE_BYTES, how)


def cache_per_token(layers: int, kv_heads: int, head_dim: int, each: int) -> int:
    """Bytes of one token's keys and values in all layers."""
    return 2 * layers * kv_heads * head_dim * each


def kv_cache(sequences: int, tokens: int, per_token: int) -> Term:
    """Keys and values of `sequences` at their longest."""
    how = f"{sequences:,} sequences × {tokens:,} tokens × {size(per_token)}"
    return Term("keys and values", sequences * tokens * per_token, how)


def vllm_share(share: float, total: float) -> Term:
    """What an engine reserves on a card: weights, keys and values and its activations all come out of it."""
    return Term("vLLM engine", share * total, f"gpu_memory {share:g} × {size(total)}")


def prompt_logprobs(tokens: int, vocabulary: int) -> Term:
    """What vLLM makes for prompt log-probs beyond its reservation: logits in bfloat16, in float32, and their
    log-softmax in float32."""
    how = f"{tokens:,} tokens × {vocabulary:,} × (2 + 4 + 4) bytes"
    return Term("prompt log-probs", tokens * vocabulary * 10, how)


def records(tokens: int, each: int, signal: str) -> Term:
    """What records of the longest responses keep of the teacher's distribution at each token."""
    what = {"top_k": "the teacher's likeliest tokens", "full": "the teacher's hidden states"}[signal]
    return Term(what, tokens * each, f"{tokens:,} tokens × {each:,} bytes, at the longest")


def checkpoint_bytes(parameters: int, each: int, trained: int, trained_each: int) -> int:
    """Of one checkpoint: the weights, or those of adapters where they alone are trained, and two moments of each."""
    saved = trained * trained_each if trained < parameters else parameters * each
    return saved + 2 * trained * trained_each
