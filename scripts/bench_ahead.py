"""`rollout.ahead` 1 against 0, `scoring.overlap` on against off, and what a weight sync costs, with real vLLM servers.

    python scripts/bench_ahead.py [--rounds 3] [--steps 8]      # a random Qwen3 of 25 M, vocabulary 32,000; two cores
    python scripts/bench_ahead.py --parts curves [--seeds 5]    # what a step of staleness does to learning, on the toy
    python scripts/bench_ahead.py --quick                       # the smallest toy pair and few steps, for breakage

The student's server has one core, and trainer and teacher the other. Sides take turns within a round; a figure is the
median over the steps of all rounds, less the first two and the last of each run. Seconds are the step's own, by the
wall clock. The responses end by their limit alone. For the curves, rollout=hf stands for a server, which would not
repeat: in a step it first writes the next step's responses, by the weights that a server would have then, and the rest
of the step follows. One JSON document goes to stdout, a table to stderr.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import httpx

SHAPE = {
    "vocab_size": 32_000,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
WARM_UP = 2  # steps
PLAIN = str.maketrans("=, ", "---")
SERVED = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="of a response")
    parser.add_argument("--prompts", type=int, default=8, help="of a step")
    parser.add_argument("--parts", nargs="+", choices=("ahead", "overlap", "curves"), default=["ahead", "overlap"])
    parser.add_argument("--seeds", type=int, default=5, help="of the curves")
    parser.add_argument("--curve-steps", type=int, default=40)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--servers", nargs=2, metavar="URL", help="of student and teacher of --quick that are there")
    parser.add_argument("settings", nargs="*", help="further settings of iwopd train, after --")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.steps, options.tokens, options.prompts = 1, 3, 4, 2
    cores = sorted(os.sched_getaffinity(0))
    core = None if options.quick else cores[-1]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        room = Path(folder)
        models = smoke_models() if options.quick else random_models(room)
        urls = options.servers or []
        if not urls and options.parts != ["curves"]:
            roles = [("student", cores[0])] + [("teacher", cores[-1])] * ("overlap" in options.parts)
            urls = [stack.enter_context(server(models[role], room / f"{role}.log", core)) for role, core in roles]
        urls = urls or [""]
        given = [
            *(f"student.path={models['student']}", f"teacher.path={models['teacher']}", "benchmark=[]"),
            *("rollout=vllm_server", f"rollout.urls=[{urls[0]}]", f"rollout.max_tokens={options.tokens}"),
            *(f"data.batch_size={options.prompts}", f"run.steps={options.steps}", "run.save_every=0"),
            *options.settings,
        ]
        found: dict[str, Any] = {"load": os.getloadavg(), "tokens": options.tokens, "prompts": options.prompts}
        if "ahead" in options.parts:
            sides = {"ahead=0": ["rollout.ahead=0"], "ahead=1": ["rollout.ahead=1"]}
            found["ahead"] = compared(sides, given, room, core, options.rounds)
        if "overlap" in options.parts:
            # As many requests at a time as a part of the batch, so that responses end one after the other.
            served = ["scoring=vllm_server", f"scoring.urls=[{urls[1]}]"]
            served += [f"rollout.http.connections={max(1, options.prompts // 4)}"]
            sides = {f"overlap={value}": [*served, f"scoring.overlap={value}"] for value in ("false", "true")}
            sides["overlap=true, ahead=1"] = [*served, "scoring.overlap=true", "rollout.ahead=1"]
            found["overlap"] = compared(sides, given, room, core, options.rounds)
        if "curves" in options.parts:
            found["curves"] = curves(options, room)
    print(table(found), file=sys.stderr)
    print(json.dumps(found))
    return 0


def compared(
    sides: dict[str, list[str]], given: Sequence[str], room: Path, core: int | None, rounds: int
) -> dict[str, dict[str, float]]:
    """Medians of each side's steps, which take turns."""
    steps: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for number in range(rounds):
        for side, chosen in sides.items():
            steps[side] += train([*given, *chosen], room / f"{len(steps)}-{side.translate(PLAIN)}-{number}", core)
    return {side: medians(rows) for side, rows in steps.items()}


def train(settings: Sequence[str], run: Path, core: int | None) -> list[dict[str, float]]:
    """Metrics of the steps of one run, less the first and the last: it waits for none that follow.

    Args:
        core: of its process; None for this one.
    """
    if core is None:
        from iwopd.launch import launch

        launch("train", "iwopd.commands.train", [*settings, f"run.dir={run}"])
    else:
        command = [sys.executable, "-m", "iwopd", "train", *settings, f"run.dir={run}"]
        done = subprocess.run(pinned(command, core), capture_output=True, text=True, env=one_thread(), check=False)
        if done.returncode:
            sys.exit(f"{run.name}: {done.stderr[-2000:] or done.stdout[-2000:]}")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [row for row in rows if "train/loss" in row][min(WARM_UP, len(rows) - 2) : -1]
    for row in kept:
        row["step"] = sum(value for key, value in row.items() if key.startswith("time/"))
    return kept


def curves(options: argparse.Namespace, room: Path) -> dict[str, list[list[float]]]:
    """The toy's accuracies at steps 0, 10, … of a run for each seed."""
    from unittest.mock import patch

    from iwopd.launch import launch

    found: dict[str, list[list[float]]] = {"ahead=0": [], "ahead=1": []}
    settings = [f"run.steps={options.curve_steps}", "eval.every=10", "eval.greedy=false", "run.save_every=0"]
    for seed, ahead in product(range(options.seeds), (0, 1)):
        run = room / f"curve-{ahead}-{seed}"
        chosen = [*settings, "run.samples=0", "rollout=hf", f"rollout.ahead={ahead}", f"seed={seed}", f"run.dir={run}"]
        with patch("iwopd.config.checks.ahead_problems", lambda config: ()):  # it would be refused: it saves no time
            launch("train", "iwopd.commands.train", chosen)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        found[f"ahead={ahead}"].append([row["eval/accuracy"] for row in rows if "eval/accuracy" in row])
        print(f"ahead={ahead}, seed {seed}: {found[f'ahead={ahead}'][-1]}", file=sys.stderr)
    return found


def medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of the seconds of a step, of its stages, and of what else there is to look at."""
    keys = [key for key in rows[0] if key.startswith(("time/", "train/staleness", "train/importance"))]
    found = {key: statistics.median(row[key] for row in rows) for key in ("step", *keys)}
    return found | {"steps": len(rows), "least": min(row["step"] for row in rows)}


@contextmanager
def server(model: Path, log: Path, core: int) -> Iterator[str]:
    """A vLLM server on one core; its address."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = [
        *("--model", str(model), "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"),
        *("--max-model-len", "512", "--max-num-seqs", "64", "--kv-cache-memory-bytes", str(2**28)),
        *("--worker-extension-cls", "iwopd.vllm.worker.StudentWeights", "--logprobs-mode", "processed_logprobs"),
        *("--enforce-eager", "--no-enable-chunked-prefill", "--disable-uvicorn-access-log"),
    ]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options]
    environment = {**os.environ, **SERVED, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with log.open("w") as stream:
        process = subprocess.Popen(
            pinned(command, core), env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        url, limit = f"http://127.0.0.1:{port}", time.monotonic() + 400
        while not answers(url):
            if process.poll() is not None or time.monotonic() > limit:
                sys.exit(f"the server does not start: {log.read_text()[-2000:]}")
            time.sleep(0.5)
        yield url
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=1, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def pinned(command: Sequence[str], core: int) -> list[str]:
    return ["taskset", "-c", str(core), *command]


def one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def smoke_models() -> dict[str, Path]:
    from iwopd.toy.models import ensure_models

    @contextmanager
    def no_progress(title: str) -> Iterator[Any]:
        yield lambda done, total: None

    return ensure_models({role: f"toy://smoke/{role}" for role in ("student", "teacher")}, no_progress)


def random_models(room: Path) -> dict[str, Path]:
    """Student and teacher with the toy's tokenizer, whose ids are the first of many; the end of a response is none of
    the likely ones."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(smoke_models()["student"])
    folders = {role: room / role for role in ("student", "teacher")}
    for seed, folder in enumerate(folders.values()):
        torch.manual_seed(seed)
        config = Qwen3Config(**SHAPE, max_position_embeddings=4096, eos_token_id=tokenizer.eos_token_id)
        Qwen3ForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folders


def table(found: dict[str, Any]) -> str:
    """Markdown: a row for each side, its seconds as a share of the first's."""
    stages = ("rollout", "score", "update", "sync", "parity")
    lines = [f"load {found['load'][0]:.1f}, {found['prompts']} prompts x {found['tokens']} tokens, seconds a step:", ""]
    lines += [f"| | step | of the first | least | {' | '.join(stages)} |", "|---|---|---|---|" + "---|" * len(stages)]
    for part in ("ahead", "overlap"):
        for side, row in found.get(part, {}).items():
            first = next(iter(found[part].values()))
            shares = " | ".join(f"{row.get(f'time/{stage}_s', 0):.2f}" for stage in stages)
            cells = f"{row['step']:.2f} | {row['step'] / first['step']:.2f} | {row['least']:.2f}"
            lines.append(f"| {side} | {cells} | {shares} |")
    for side, runs in found.get("curves", {}).items():
        means = [f"{statistics.fmean(at):.3f} ± {statistics.pstdev(at):.3f}" for at in zip(*runs, strict=True)]
        lines.append(f"| {side}, {len(runs)} seeds: accuracy every 10 steps | {' | '.join(means)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
