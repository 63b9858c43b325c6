"""`iwopd eval`: accuracy of one model, with no training."""

import json
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from iwopd import build
from iwopd.commands.trainer import evaluation_metrics
from iwopd.config import Config, HfRolloutConfig
from iwopd.data import Row
from iwopd.display import Display, evaluation_line
from iwopd.errors import RunFolderError
from iwopd.interrupts import Interrupts
from iwopd.store import RunFolder
from iwopd.tracking import Tracker


def run(config: Config) -> float:
    """Evaluate `eval.model` on every benchmark; the mean accuracy.

    Leaves config.yaml, metrics.jsonl and eval/<benchmark>.json in the run folder.
    """
    assert config.run.dir is not None, "launch settles it"
    assert config.eval.model is not None, "launch checks it"
    folder = RunFolder(config.run.dir, {"verb": "eval", **asdict(config)}, resume=config.run.resume)
    folder.check()
    build.check_vllm(config, "eval")
    build.check_path("eval.model", config.eval.model)
    rows = build.benchmark_rows(config.eval)
    with Interrupts(), Display() as display:
        return _evaluate(config, folder, rows, display)


def _evaluate(config: Config, folder: RunFolder, rows: dict[str, list[Row]], display: Display) -> float:
    from iwopd.stages import evaluate

    assert config.eval.model is not None
    model_folder = build.model_folders({"eval.model": config.eval.model}, display.stage)["eval.model"]
    section = replace(config.student, revision=None)  # dtype, attention and trust come from the student's section
    tokenizer = build.tokenizer("eval.model", model_folder, revision=None, trust_remote_code=section.trust_remote_code)
    benchmarks = build.benchmarks(config.eval, rows, tokenizer)
    sampling = build.eval_sampling(config)
    longest = max(len(prompt.ids) for benchmark in benchmarks for prompt in benchmark.prompts)
    model_config = build.model_config("eval.model", section, model_folder)
    build.check_context("eval.model", model_config, "eval.max_tokens", longest, sampling.max_tokens)
    display.line(f"loading {config.eval.model}")
    stops = build.stop_ids("eval.model", section, model_folder, tokenizer)
    log_file = folder.path / "vllm.log"
    served = build.Served(model_folder, section, longest + sampling.max_tokens, log_file, stops)
    lm = None
    if isinstance(config.rollout, HfRolloutConfig):
        device = build.device(config.run.device)
        lm = build.language_model("eval.model", section, model_folder, device, autocast=config.optim.autocast)

    found = []
    with ExitStack() as stack:
        if build.uses_vllm(config):
            stack.enter_context(folder)  # vLLM's log goes there
            display.line(f"starting vLLM, a matter of seconds to minutes; its log is {log_file}")
        engine = stack.enter_context(build.engine(config, served, lm))
        engine.load_weights(model_folder)
        for benchmark in benchmarks:
            with display.stage(f"evaluating on {benchmark.name}") as advance:
                evaluation = evaluate(
                    engine,
                    benchmark,
                    sampling,
                    k=config.eval.k,
                    greedy=config.eval.greedy,
                    seed=config.seed,
                    decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
                    progress=advance,
                )
            display.line(evaluation_line(benchmark.name, evaluation.metrics))
            found.append(evaluation)
    metrics = evaluation_metrics(found)
    with folder:
        Tracker(folder.path).log(0, metrics)
        for evaluation in found:
            _write(folder.path / "eval" / f"{evaluation.benchmark}.json", evaluation.metrics)
    display.line(f"results are in {folder.path}")
    return metrics["eval/accuracy"]


def _write(file: Path, metrics: dict[str, float]) -> None:
    try:
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(metrics, indent=2) + "\n")
    except OSError as error:
        raise RunFolderError(f"{file}: cannot be written ({error.strerror}); make room") from error
