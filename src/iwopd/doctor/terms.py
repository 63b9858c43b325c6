"""What passes through models without data keep, as terms of an estimate."""

from iwopd.doctor import memory
from iwopd.doctor.fake_model import Pass, Work
from iwopd.doctor.memory import Term
from iwopd.doctor.models import Model, Scorer


def weights_of(scorer: Scorer) -> Term:
    """Of a model that scores."""
    return memory.weights(scorer.model.shape.parameters, scorer.model.each, f"{scorer.key}'s weights")


def head_of(scorer: Scorer) -> Term:
    """Of a model whose hidden states come from elsewhere."""
    return memory.weights(scorer.model.shape.head, scorer.model.each, f"{scorer.key}'s head")


def working(found: Pass, work: Work, what: str) -> Term:
    """What a pass without gradients keeps beside the weights."""
    how = f"{work.rows} × {work.prompt + work.stop - 1:,} tokens, {memory.size(found.peak / work.read)} per token"
    return Term(what, found.peak, how)


def activations(found: Pass, work: Work, student: Model) -> list[Term]:
    """What the layers keep for backward, and what the rest of an update adds to it at its peak."""
    layers, length = student.shape.layers, work.prompt + work.stop - 1
    per_token = found.kept / work.read / layers
    how = f"{work.rows} × {length:,} tokens × {layers} layers × {memory.size(per_token)}"
    kept = Term("activations", found.kept, how + (", checkpointed" if student.fake.checkpointing else ""))
    rest = found.peak - found.kept
    if rest < 0:  # the peak comes late in backward, when most of them are freed
        return [Term("activations still held", found.peak, how)]
    chunk = max(student.fake.lm.chunk, student.shape.width)
    what = (
        f"head in chunks of {min(chunk, work.scored):,} × {student.shape.vocabulary:,} logits, its gradient, backward"
    )
    return [kept, Term("log-probs and backward", rest, what)]
