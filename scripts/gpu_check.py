"""Does iwopd work on this GPU, does it compute what the CPU computes, and how fast is it?

    python scripts/gpu_check.py          # exit status 0: good, 1: a check failed, 2: no CUDA device
    python scripts/gpu_check.py --gpus 8 # also several processes, a GPU each
    python scripts/gpu_check.py --cpu    # the same code at tiny sizes on the CPU, to test this script

Needs no network and no installation: iwopd comes from the src/ beside this folder; torch ≥ 2.11, transformers ≥ 5.17,
hydra-core, omegaconf and datasets must be there. Takes under eight minutes. Prints one JSON document to stdout:

- smoke: `iwopd train +experiment=smoke` on the device; accuracy before and after.
- numerics: a tiny float32 model on device and CPU; largest difference of log-probs (nats), of each parameter's gradient
  (share of its largest element) and of the loss; share of tokens that they sample differently from one seed.
- parallel (--gpus N): the same smoke run by N processes; how far its final weights are from one process's, relative.
- speed: one update, scoring and rollout of a randomly initialised Qwen3-0.6B: median seconds, response tokens per
  second, and memory (MiB) before, at the peak and after. `mfu` is the share of the device's peak that forward and
  backward need by count (matrices and causal attention; what gradient checkpointing recomputes is not counted).
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")]))
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from iwopd.config import OptimConfig
from iwopd.models.language_model import LanguageModel
from iwopd.models.student import Student
from iwopd.rollout.base import Sampling
from iwopd.rollout.hf import HfEngine
from iwopd.scoring.hf import HfTeacher
from iwopd.training.objective import Objective
from iwopd.training.score import score
from iwopd.training.update import update
from iwopd.types import Prompt, Rollout, as_ids, as_logprobs
from iwopd.weighting.iw import Iw

# Dense bfloat16 FLOP/s of the SXM parts, by a piece of the device's name.
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}

TOLERANCES = {  # float32 itself is off by about 2e-6; TF32 would be by 1e-3
    "logprobs_max_abs": 1e-4,  # nats
    "gradients_max_rel": 1e-4,  # of the parameter's largest element
    "loss_rel": 1e-5,
    "sampled_differently": 0.05,  # share of tokens; in a sequence, one that differs makes those after it differ too
}
NEVER = -1  # a stop id that is not sampled

WEIGHTING = Iw()


@dataclass(frozen=True)
class Workload:
    """A model's shape, and how much it is given to do."""

    shape: dict[str, int]
    prompt: int
    response: int  # tokens per sequence of update and scoring
    sampled: int  # tokens per sequence of the rollout
    sequences: int = 4
    sampled_sequences: int = 16


TINY_SHAPE = {
    "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
QWEN3_06B_SHAPE = {
    "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip
TINY = Workload(TINY_SHAPE, prompt=8, response=64, sampled=16)
QWEN3_06B = Workload(QWEN3_06B_SHAPE, prompt=128, response=4096, sampled=128)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="tiny sizes on the CPU, to test this script")
    parser.add_argument("--gpus", type=int, default=1, help="also train on so many, a process for each")
    parser.add_argument("--micro-batch-tokens", type=int, default=32768, help="of the timed update (%(default)s)")
    options = parser.parse_args()
    if not options.cpu and not torch.cuda.is_available():
        print("gpu_check: torch sees no CUDA device; --cpu tests the script itself", file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.cpu else "cuda")
    work = TINY if options.cpu else QWEN3_06B
    torch.set_float32_matmul_precision("highest")  # no TF32
    start = time.perf_counter()
    report: dict[str, Any] = {
        "device": device_name(device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "smoke": section("smoke", lambda: smoke(device)),
        "numerics": section("numerics", lambda: numerics(device)),
        "speed": section("speed", lambda: speed(device, work, options.micro_batch_tokens)),
    }
    if options.gpus > 1:
        report["parallel"] = section("parallel", lambda: parallel(device, options.gpus))
    report["seconds"] = round(time.perf_counter() - start, 1)
    report["ok"] = all(found["ok"] for found in report.values() if isinstance(found, dict))
    print(json.dumps(report, indent=2))
    return 0 if report["ok"] else 1


def section(name: str, function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `function` reports, and whether it is well; an error ends the section, not the program."""
    print(f"{name} …", file=sys.stderr, flush=True)
    start = time.perf_counter()
    try:
        found = {"ok": True, **function()}
    except Exception as error:
        traceback.print_exc()
        found = {"ok": False, "error": f"{type(error).__name__}: {error}"}
    print(f"{name}: {time.perf_counter() - start:.1f} s, {json.dumps(found)}", file=sys.stderr, flush=True)
    return found


def train(run: Path, device: torch.device, *overrides: str) -> float:
    """The smoke experiment from the command line; seconds."""
    start = time.perf_counter()
    given = ["+experiment=smoke", f"run.dir={run}", f"run.device={device}", *overrides]
    command = [sys.executable, "-m", "iwopd", "train", *given]
    subprocess.run(command, cwd=run.parent, stdout=sys.stderr, check=True, timeout=300)
    return time.perf_counter() - start


def smoke(device: torch.device) -> dict[str, Any]:
    """The smoke experiment, toy models included."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        seconds = train(run, device)
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    accuracies = [row["eval/accuracy"] for row in metrics if "eval/accuracy" in row]
    return {"seconds": round(seconds, 1), "accuracy_first": accuracies[0], "accuracy_last": accuracies[-1]}


def parallel(device: torch.device, gpus: int) -> dict[str, Any]:
    """Several processes against one. On GPUs, a sampled token may differ by rounding, and what is learnt from it."""
    with tempfile.TemporaryDirectory() as folder:
        one, several = (Path(folder) / name for name in ("one", "several"))
        train(one, device)
        seconds = train(several, device, "parallel=fsdp", f"parallel.processes={gpus}")
        ours, theirs = (load_file(run / "final" / "model.safetensors") for run in (several, one))
    gap = sum((ours[name] - theirs[name]).double().square().sum() for name in theirs)
    relative = float((gap / sum(weight.double().square().sum() for weight in theirs.values())) ** 0.5)
    return {"processes": gpus, "seconds": round(seconds, 1), "weights_rel": relative, "ok": relative < 1e-2}


def numerics(device: torch.device) -> dict[str, Any]:
    """Score, update and sample on both devices with the same weights."""
    student, teacher = (make_model(TINY_SHAPE, seed, initializer_range=0.1) for seed in (0, 1))
    here, there = (Traced(student, teacher, torch.device(place)) for place in ("cpu", device))
    gradients = [
        (here.student.gradients[name] - gradient).abs().max() / here.student.gradients[name].abs().max()
        for name, gradient in there.student.gradients.items()
    ]
    found = {
        "logprobs_max_abs": (here.logprobs - there.logprobs).abs().max().item(),
        "gradients_max_rel": torch.stack(gradients).max().item(),
        "loss_rel": abs(here.loss - there.loss) / abs(here.loss),
        "sampled_differently": (here.sampled != there.sampled).double().mean().item(),
    }
    ok = all(found[name] <= tolerance for name, tolerance in TOLERANCES.items())
    return {"ok": ok, **found, "tolerances": TOLERANCES}


class Recorder(Student):
    """Keeps the gradients that an update frees."""

    gradients: dict[str, Tensor]

    def apply_gradients(self, denominator: float) -> float:
        named = self.model.named_parameters()
        self.gradients = {
            name: parameter.grad.double().cpu() / denominator for name, parameter in named if parameter.grad is not None
        }
        return super().apply_gradients(denominator)


class Traced:
    """What one device makes of copies of the models: samples, log-probs, loss and gradients."""

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel, device: torch.device):
        self.student = Recorder(place(student, device), OptimConfig(lr=1e-4), micro_batch_tokens=256)
        engine = HfEngine(self.student.lm, [NEVER], batch_size=16)
        sampled = engine.generate(make_prompts(32, 16), Sampling(max_tokens=64), seed=0, stream=0)
        self.sampled = torch.tensor([rollout.response_ids.tolist() for rollout in sampled])

        vocabulary = TINY_SHAPE["vocab_size"]
        rollouts = [make_rollout(i, prompt=3 + i, response=20 + 7 * i, vocabulary=vocabulary) for i in range(8)]
        scorer = HfTeacher(place(teacher, device), device, batch_tokens=256)
        scored = score(scorer, rollouts, WEIGHTING.window(0.0), student=self.student)
        self.loss = update(self.student, scored, Objective(WEIGHTING), seeds=range(8))["train/loss"]
        records = [values for record in scored for values in (record.teacher_logprobs, record.trainer_logprobs)]
        self.logprobs = torch.cat([torch.tensor(values) for values in records])


def speed(device: torch.device, work: Workload, micro_batch_tokens: int) -> dict[str, Any]:
    """Time the stages of a step, with the optimiser's state in place as in a run's second step and later."""
    student_model = make_model(work.shape, 0, device=device)
    student_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    student_lm = LanguageModel(student_model, autocast=True, name="student")
    student = Student(student_lm, OptimConfig(lr=1e-6), micro_batch_tokens)
    teacher_lm = LanguageModel(make_model(work.shape, 1, device=device, dtype=torch.bfloat16), name="teacher")
    teacher = HfTeacher(teacher_lm, device)
    engine = HfEngine(student_lm, [NEVER])

    vocabulary = work.shape["vocab_size"]
    rollouts = [make_rollout(i, work.prompt, work.response, vocabulary) for i in range(work.sequences)]
    scored = score(teacher, rollouts, WEIGHTING.window(0.0))
    prompts = make_prompts(work.sampled_sequences, work.prompt)
    sampling = Sampling(max_tokens=work.sampled)
    stages: dict[str, tuple[Callable[[], Any], int, float | None]] = {
        "update": (
            lambda: update(student, scored, Objective(WEIGHTING), seeds=range(work.sequences)),
            work.sequences * work.response,
            3 * forward_flops(student_model, rollouts),  # backward is twice the forward
        ),
        "score": (
            lambda: score(teacher, rollouts, WEIGHTING.window(0.0)),
            work.sequences * work.response,
            forward_flops(student_model, rollouts),
        ),
        "rollout": (
            lambda: engine.generate(prompts, sampling, seed=0, stream=0),
            work.sampled_sequences * work.sampled,
            None,  # decoding waits for memory, not for arithmetic
        ),
    }
    table = {name: timed(device, *stage) for name, stage in stages.items()}
    weights = [*student_model.parameters(), *teacher_lm.model.parameters()]
    moments = [value for state in student.optimizer.state.values() for value in state.values()]
    return {
        **table,
        "sequences": work.sequences,
        "response_tokens": work.response,
        "micro_batch_tokens": student.micro_batch_tokens,
        "weights_and_optimizer_mib": mib(sum(tensor.nbytes for tensor in weights + moments)),
    }


def timed(device: torch.device, run: Callable[[], Any], tokens: int, flops: float | None) -> dict[str, Any]:
    """One warm-up, then the median of three."""
    run()
    before, seconds = allocated(device), []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(3):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    peak = peak_flops(device)
    return {
        "seconds": round(median(seconds), 4),
        "tokens_per_s": round(tokens / median(seconds)),
        "mfu": round(flops / median(seconds) / peak, 3) if flops and peak else None,
        "memory_before_mib": before,
        "memory_peak_mib": mib(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None,
        "memory_after_mib": allocated(device),
    }


def forward_flops(model: PreTrainedModel, rollouts: list[Rollout]) -> float:
    """2 per weight and token, the head's only for response tokens; causal attention: 2 · layers · width · length²."""
    config = model.config
    head = config.vocab_size * config.hidden_size  # tied to the embeddings, so it is among the parameters once
    body = sum(parameter.numel() for parameter in model.parameters()) - head
    width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    lengths = [len(rollout.prompt_ids) + len(rollout.response_ids) - 1 for rollout in rollouts]
    predicted = sum(len(rollout.response_ids) for rollout in rollouts)
    return 2.0 * (body * sum(lengths) + head * predicted + width * sum(length**2 for length in lengths))


def peak_flops(device: torch.device) -> float | None:
    return next((flops for piece, flops in PEAK_FLOPS.items() if piece in device_name(device)), None)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def allocated(device: torch.device) -> float | None:
    return mib(torch.cuda.memory_allocated(device)) if device.type == "cuda" else None


def mib(size: float) -> float:
    return round(size / 2**20, 1)


def make_model(
    shape: dict[str, int],
    seed: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    initializer_range: float = 0.02,
) -> PreTrainedModel:
    """A Qwen3 with random weights, made where it is to stand."""
    config = Qwen3Config(
        **shape, max_position_embeddings=8192, tie_word_embeddings=True, initializer_range=initializer_range
    )
    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


def place(model: PreTrainedModel, device: torch.device) -> LanguageModel:
    """A copy on `device`."""
    module: Any = copy.deepcopy(model)
    return LanguageModel(module.to(device))


def make_prompts(count: int, length: int) -> list[Prompt]:
    """Random prompts of up to `length` tokens."""
    generator = torch.Generator().manual_seed(count)
    ids = torch.randint(1000, (count, length), generator=generator).tolist()
    return [Prompt(f"prompt-{i}", row[i % (length // 2) :], text="") for i, row in enumerate(ids)]


def make_rollout(index: int, prompt: int, response: int, vocabulary: int) -> Rollout:
    """Random tokens; the sampler's log-probs are a uniform distribution's, a little off."""
    generator = torch.Generator().manual_seed(index)
    ids = as_ids(torch.randint(vocabulary, (prompt + response,), generator=generator).numpy())
    noise = 0.1 * torch.randn(response, generator=generator)
    logprobs = as_logprobs((noise - torch.tensor(vocabulary).log()).numpy())
    return Rollout(f"rollout-{index}", ids[:prompt], ids[prompt:], logprobs, "length")


if __name__ == "__main__":
    sys.exit(main())
