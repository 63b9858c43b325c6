"""FLOPs and seconds; the arithmetic alone.

Forward: 2 FLOPs per weight that a token meets, and per layer 4 · heads · head_dim for each token it attends to.
Embedding rows are looked up, not multiplied, and the head is applied where log-probs are needed only. Backward costs
twice the forward, gradient checkpointing one forward more.
"""

from dataclasses import dataclass

from iwopd.config.gpus import Card


@dataclass(frozen=True)
class Shape:
    """What counts of a model.

    Attributes:
        parameters: all, tied ones once.
        trained: those that get gradients; 0 for a teacher.
        experts: of the parameters, those in experts.
        expert_share: of the experts' parameters, the share one token meets.
        embedding: parameters of the input's rows; of the head where the two are tied.
        head: parameters of the matrix that makes logits.
        attention: heads · head_dim.
        grouped: several heads share keys and values.
        cache: bytes of one token's keys and values, in the dtype it computes in.
        context: longest sequence it can attend to, tokens; None where its config does not say.
    """

    name: str
    parameters: int
    trained: int
    experts: int
    expert_share: float
    embedding: int
    head: int
    tied: bool
    layers: int
    attention: int
    grouped: bool
    cache: int
    vocabulary: int
    width: int
    context: int | None

    @property
    def active(self) -> int:
        """Parameters one token meets."""
        return round(self.parameters - self.experts * (1 - self.expert_share))

    @property
    def body(self) -> int:
        """Of them, those of the layers."""
        return self.active - self.head - (0 if self.tied else self.embedding)

    def forward(self, read: float, scored: float, length: float) -> float:
        """FLOPs for `read` tokens in sequences of `length`, with log-probs of `scored` of them."""
        return 2 * self.body * read + 2 * self.head * scored + self.attend(read, length)

    def attend(self, read: float, length: float) -> float:
        """FLOPs of causal attention: each token attends to half of its sequence on average."""
        return 4 * self.layers * self.attention * read * length / 2


@dataclass(frozen=True)
class Cost:
    """Of one stage of a step: tokens, FLOPs and, where a card is known, seconds; `how` is the arithmetic."""

    stage: str
    tokens: float
    flops: float
    seconds: float | None
    how: str


def matmul_seconds(flops: float, card: Card | None, utilisation: float, gpus: int = 1, each: int = 2) -> float | None:
    """Seconds at a share of the card's peak, for numbers of `each` bytes."""
    if card is None:
        return None
    tflops = card.float32 if each == 4 and card.float32 else card.tflops
    return flops / (utilisation * tflops * 1e12 * gpus)


def decode_seconds(
    sequences: int,
    concurrent: int,
    length: float,
    start: float,
    weights: float,
    cache: float,
    card: Card,
    share: float,
) -> float:
    """Seconds in which `sequences` are decoded, bound by memory: each token of a batch reads all weights and all cached
    keys and values.

    Args:
        concurrent: sequences decoded together.
        length: tokens each decodes, on average.
        start: tokens of their prompts.
        weights: bytes.
        cache: bytes per token.
        share: of the bandwidth that is reached.
    """
    concurrent = max(1, min(concurrent, sequences))
    passes = sequences / concurrent * length
    return passes * (weights + concurrent * cache * (start + length / 2)) / (share * card.bandwidth * 1e9)
