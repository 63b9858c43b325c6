"""What memory does a vocabulary of 151,936 tokens cost, and are the chunks of `iwopd.numerics.logprobs` worth it?

    python scripts/bench_memory.py                            # some minutes on two CPU cores; Linux
    python scripts/bench_memory.py --hidden 512 --tokens 128  # a wider head, where arithmetic weighs more
    python scripts/bench_memory.py --rows product naive       # some rows only

Each row is measured in processes of its own, over several repeats (the first makes the optimiser's state), above what
the process held before the models were made:

- resident: the peak of resident memory, which the machine must have (the kernel's VmHWM).
- live: the same where freed blocks go back to the kernel at once (glibc's MALLOC_MMAP_THRESHOLD_), so without what the
  allocator keeps or cannot reuse: what the algorithm holds.
- weights and state: their share of both: weights of the models; gradients and AdamW's moments.
- seconds: the median of three repeats, glibc as it comes.

The rows: `product` is iwopd's score + update with a tiny Qwen3, optimiser step included, `naive` the same with whole
logits and log_softmax. `head_*` are log-probs of the tokens and their gradients alone: iwopd's way for plain linear
heads and its checkpointed loop for any other, whole logits, and PyTorch's chunked `linear_cross_entropy` where this
PyTorch has it.

Prints a table to stderr and one JSON document to stdout; exit status 1 where the product's resident peak is more than a
fifth of what whole logits alone would take.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from iwopd.config import OptimConfig
from iwopd.models.batch import collate_tokens
from iwopd.models.language_model import LanguageModel
from iwopd.models.student import Student
from iwopd.numerics import chunked_token_logprobs, iw_weights, linear_token_logprobs, opd_advantage, policy_loss
from iwopd.scoring.hf import HfTeacher
from iwopd.training.objective import Objective
from iwopd.training.score import score
from iwopd.training.update import update
from iwopd.types import Rollout, as_ids, as_logprobs
from iwopd.weighting.iw import Iw

VOCABULARY = 151_936
SEQUENCES = 2
LIMIT = 0.2  # of the memory of whole logits
WEIGHTING = Iw()


class Prepared(NamedTuple):
    """A row ready to be measured."""

    work: Callable[[], Any]
    weights: int  # bytes
    state: int  # bytes of gradients and the optimiser's moments


Prepare = Callable[[list[Rollout], int, int], Prepared]  # of rollouts, vocabulary and width


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024, help="response tokens of each of the two (%(default)s)")
    parser.add_argument("--hidden", type=int, default=32, help="width of the model (%(default)s)")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--repeats", type=int, help=argparse.SUPPRESS)  # measure one row in this process
    options = parser.parse_args()
    if options.repeats:
        print(json.dumps(measure(options.rows[0], options.hidden, options.tokens, options.repeats)))
        return 0
    logits = mib(4 * VOCABULARY * SEQUENCES * options.tokens)
    rows = {row: in_processes(row, options.hidden, options.tokens, logits) for row in options.rows}
    print(table(rows, logits), file=sys.stderr)
    ok = rows.get("product", {}).get("resident_share", 0.0) <= LIMIT
    report = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "vocabulary": VOCABULARY,
        "hidden": options.hidden,
        "response_tokens": SEQUENCES * options.tokens,
        "logits_mib": logits,
        "limit_share": LIMIT,
        "ok": ok,
        "rows": rows,
    }
    print(json.dumps(report, indent=2))
    return 0 if ok else 1


def in_processes(row: str, hidden: int, tokens: int, logits: float) -> dict[str, Any]:
    """`measure` in fresh processes, so that no row inherits another's memory."""
    if row == "head_torch" and not hasattr(functional, "linear_cross_entropy"):
        return {"skipped": f"PyTorch {torch.__version__} has no linear_cross_entropy"}
    command = [sys.executable, __file__, "--rows", row, "--hidden", str(hidden), "--tokens", str(tokens)]

    def run(repeats: int, **environment: str) -> dict[str, Any]:
        print(f"{row} {environment or ''} …", file=sys.stderr, flush=True)
        env = {**os.environ, **environment}
        done = subprocess.run([*command, "--repeats", str(repeats)], env=env, stdout=subprocess.PIPE, check=True)
        return json.loads(done.stdout)

    found, live = run(3), run(2, MALLOC_MMAP_THRESHOLD_=str(2**20))["peak_mib"]
    resident = found.pop("peak_mib")
    shares = {"resident_share": round(resident / logits, 3), "live_share": round(live / logits, 3)}
    return {"resident_mib": resident, "live_mib": live, **shares, **found}


def table(rows: dict[str, dict[str, Any]], logits: float) -> str:
    columns = ("resident_mib", "live_mib", "weights_mib", "state_mib")
    heads = ("resident", "share", "live", "weights", "state", "seconds")
    lines = ["MiB".ljust(14) + "".join(f"{head:>10}" for head in heads), f"{'logits alone':14}{logits:10.0f}{1:10.0%}"]
    for name, found in rows.items():
        if "skipped" in found:
            lines.append(f"{name:14}skipped: {found['skipped']}")
            continue
        first, *rest = (f"{found[column]:10.0f}" for column in columns)
        lines.append(f"{name:14}{first}{found['resident_share']:10.0%}{''.join(rest)}{found['seconds']:10.2f}")
    return "\n".join(lines)


def measure(row: str, hidden: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Peak memory and seconds of one row in this process."""
    prepare = ROWS[row]
    prepare(make_rollouts(8, 1000), 1000, hidden).work()  # what is loaded on first use is not the row's
    before = memory("VmRSS")
    reset_peak()
    prepared = prepare(make_rollouts(tokens, VOCABULARY), VOCABULARY, hidden)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        prepared.work()
        seconds.append(time.perf_counter() - start)
    return {
        "peak_mib": mib(memory("VmHWM") - before),
        "weights_mib": mib(prepared.weights),
        "state_mib": mib(prepared.state),
        "seconds": round(median(seconds), 3),
    }


def memory(field: str) -> int:
    """Bytes: VmRSS is resident now, VmHWM was at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def reset_peak() -> None:
    """Let VmHWM start again from VmRSS; where that is not allowed, it still holds what the imports took."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        print(f"bench_memory: peak not reset ({error.strerror}), it may be too high", file=sys.stderr)


def product(rollouts: list[Rollout], vocabulary: int, hidden: int) -> Prepared:
    """A step after its rollouts, as `iwopd train` takes it."""
    teacher = HfTeacher(LanguageModel(make_model(vocabulary, hidden, 1)), torch.device("cpu"))
    student = Student(LanguageModel(make_model(vocabulary, hidden, 0)), OptimConfig(lr=1e-4))

    def work() -> None:
        scored = score(teacher, rollouts, WEIGHTING.window(0.0))
        update(student, scored, Objective(WEIGHTING), seeds=range(SEQUENCES))

    return Prepared(work, size(teacher.model.model) + size(student.model), 3 * size(student.model))


def naive(rollouts: list[Rollout], vocabulary: int, hidden: int) -> Prepared:
    """The same step with whole logits."""
    teacher, student = (LanguageModel(make_model(vocabulary, hidden, seed)) for seed in (1, 0))
    optimizer = torch.optim.AdamW(student.model.parameters(), lr=1e-4)
    tokens = collate_tokens(rollouts, [(0, len(rollout.response_ids)) for rollout in rollouts])

    def work() -> None:
        with torch.no_grad():
            scored = tokens.to_padded(teacher(tokens, whole_logits))
        own = tokens.to_padded(student(tokens, whole_logits))
        advantages = opd_advantage(scored, own.detach(), tokens.mask)
        weights = iw_weights(advantages, tokens.mask, 0.5)
        policy_loss(own, own.detach(), weights * advantages, tokens.mask).loss.backward()
        torch.nn.utils.clip_grad_norm_(student.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Prepared(work, size(teacher.model) + size(student.model), 3 * size(student.model))


def head_alone(logprobs: Callable[[LanguageModel, Tensor, Tensor], Tensor]) -> Prepare:
    """A row for a function of (model, states, targets): log-probs, and the gradients of their weighted sum."""

    def prepare(rollouts: list[Rollout], vocabulary: int, hidden: int) -> Prepared:
        lm = LanguageModel(make_model(vocabulary, hidden, 0))
        targets = torch.tensor([token for rollout in rollouts for token in rollout.response_ids])
        states = torch.randn(len(targets), hidden, requires_grad=True)
        weights = torch.randn(len(targets))

        def work() -> None:
            (weights * logprobs(lm, states, targets)).sum().backward()
            lm.model.zero_grad(set_to_none=True)
            states.grad = None

        return Prepared(work, size(lm.model), size(lm.output_embeddings))

    return prepare


def own_backward(lm: LanguageModel, states: Tensor, targets: Tensor) -> Tensor:
    return linear_token_logprobs(states, lm.output_embeddings.weight, targets, lm.chunk)


def checkpointed(lm: LanguageModel, states: Tensor, targets: Tensor) -> Tensor:
    return chunked_token_logprobs(states, targets, lm.head, lm.chunk)


def whole_logits(lm: LanguageModel, states: Tensor, targets: Tensor) -> Tensor:
    return torch.log_softmax(lm.head(states), dim=-1).gather(-1, targets[:, None]).squeeze(-1)


def linear_cross_entropy(lm: LanguageModel, states: Tensor, targets: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    head = lm.output_embeddings.weight
    return -functional.linear_cross_entropy(states, head, targets, reduction="none", options=options)


def make_model(vocabulary: int, hidden: int, seed: int) -> PreTrainedModel:
    """A Qwen3 of two layers with random weights."""
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")


def make_rollouts(response: int, vocabulary: int) -> list[Rollout]:
    """Random tokens behind prompts of 16; the sampler's log-probs are a uniform distribution's."""
    torch.manual_seed(0)
    logprob = -torch.tensor(float(vocabulary)).log().item()
    ids, logprobs = torch.randint(vocabulary, (SEQUENCES, 16 + response)).numpy(), as_logprobs([logprob] * response)
    return [
        Rollout(f"rollout-{i}", as_ids(row[:16]), as_ids(row[16:]), logprobs, "length") for i, row in enumerate(ids)
    ]


def size(module: torch.nn.Module) -> int:
    """Bytes of its weights, tied ones once."""
    return sum(parameter.nbytes for parameter in module.parameters())


def mib(count: float) -> float:
    return round(count / 2**20, 1)


ROWS: dict[str, Prepare] = {
    "product": product,
    "naive": naive,
    "head_linear": head_alone(own_backward),
    "head_checkpoint": head_alone(checkpointed),
    "head_whole": head_alone(whole_logits),
    "head_torch": head_alone(linear_cross_entropy),
}


if __name__ == "__main__":
    sys.exit(main())
