"""Sums over tokens, of which the update's metrics are means; they add up over micro-batches."""

from dataclasses import dataclass, fields


@dataclass
class Sums:
    """Of one or several micro-batches; nats where a log-prob is in it.

    Attributes:
        loss: Σ of what was minimised, before it is divided by `denominator`.
        tokens: of the windows.
        kept: tokens that the weighting keeps.
        clipped, clipped_dual: tokens whose loss a clip decided.
        ratio: Σ of the importance ratios π_θ/π_sampler, truncated as in the loss.
        capped: tokens whose ratio is truncated.
    """

    loss: float = 0.0
    denominator: float = 0.0
    tokens: float = 0.0
    advantage: float = 0.0
    abs_advantage: float = 0.0
    reverse_kl: float = 0.0
    sampler_gap: float = 0.0
    weight: float = 0.0
    weight_min: float = float("inf")
    weight_max: float = float("-inf")
    kept: float = 0.0
    clipped: float = 0.0
    clipped_dual: float = 0.0
    ratio: float = 0.0
    capped: float = 0.0

    def add(self, other: "Sums") -> None:
        """Those of further micro-batches."""
        for entry in fields(self):
            values = getattr(self, entry.name), getattr(other, entry.name)
            merged = {"weight_min": min, "weight_max": max}.get(entry.name, sum)(values)
            setattr(self, entry.name, merged)

    def metrics(self) -> dict[str, float]:
        """Means in nats per token; weights, clipping and gaps over the tokens of the windows."""
        count = max(self.tokens, 1.0)
        return {
            "train/loss": self.loss / max(self.denominator, 1.0),
            "train/advantage_mean": self.advantage / count,
            "train/abs_advantage_mean": self.abs_advantage / count,
            "train/reverse_kl": self.reverse_kl / count,
            "train/sampler_gap_mean": self.sampler_gap / count,
            "train/importance_ratio_mean": self.ratio / count,
            "train/importance_capped": self.capped / count,
            "train/weight_mean": self.weight / count,
            "train/weight_min": self.weight_min,
            "train/weight_max": self.weight_max,
            "train/kept_tokens": self.kept,
            "train/clip_fraction": self.clipped / count,
            "train/clip_fraction_lower": self.clipped_dual / count,
            "tokens/trained": self.tokens,
        }
