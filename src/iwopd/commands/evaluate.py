"""`iwopd eval`: accuracy of one model, with no training."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from rich.table import Table

from iwopd import assembly
from iwopd.assembly.run_inputs import benchmark_inputs, keep_inputs
from iwopd.config import Config, HfRolloutConfig
from iwopd.data import Row
from iwopd.evaluation.evaluate import evaluation_metrics
from iwopd.machine import runtime
from iwopd.machine.memory_watch import MemoryWatch
from iwopd.runs.console import Display, evaluation_line
from iwopd.runs.digests import combined, model_digest
from iwopd.runs.folder import RunFolder
from iwopd.runs.interrupts import Interrupts, Stopped
from iwopd.runs.tracking import Tracker

if TYPE_CHECKING:
    from iwopd.evaluation.evaluate import Benchmark, Evaluation
    from iwopd.rollout.base import Engine


def run(config: Config) -> float:
    """Evaluate `eval.model` on every benchmark; the mean accuracy.

    Leaves config.yaml, metrics.jsonl, and eval/<benchmark>.json and .jsonl.zst (see `iwopd.evaluation.results`) in the
    run folder.
    """
    assert config.run.dir is not None, "launch settles it"
    assert config.eval.model is not None, "launch checks it"
    folder = RunFolder(config.run.dir, {"verb": "eval", **asdict(config)}, resume=config.run.resume)
    folder.check()
    assembly.check_vllm(config, "eval")
    assembly.check_path("eval.model", config.eval.model)
    rows = assembly.benchmark_rows(config.eval)
    with Interrupts(), Display() as display:
        try:
            return _evaluate(config, folder, rows, display)
        except Stopped as stop:
            if (folder.path / "eval").exists():
                display.line(f"stopped; go on with: iwopd eval … run.dir={folder.path} run.resume=true")
            sys.exit(stop.status)


def _evaluate(config: Config, folder: RunFolder, rows: dict[str, list[Row]], display: Display) -> float:
    with ExitStack() as stack:
        memory = stack.enter_context(MemoryWatch())
        evaluator = _Evaluator(config, folder, rows, display, stack)
        found = [evaluator.evaluate(benchmark) for benchmark in evaluator.benchmarks]
        metrics = evaluation_metrics(found) | {"memory/eval_mib": memory.lap("eval")}
        Tracker(folder.path).log(0, metrics)
    display.table(summary(found))
    display.line(f"results are in {folder.path / 'eval'}")
    return metrics["eval/accuracy"]


class _Evaluator:
    """The model, ready to be asked; the run folder is made as late as can be."""

    def __init__(
        self, config: Config, folder: RunFolder, rows: dict[str, list[Row]], display: Display, stack: ExitStack
    ):
        assert config.eval.model is not None
        self.config, self.folder, self.display = config, folder, display
        self.model = assembly.model_folders({"eval.model": config.eval.model}, display.stage)["eval.model"]
        section = replace(config.student, revision=None)  # dtype, attention and trust come from the student's section
        trust = section.trust_remote_code
        self.tokenizer = assembly.tokenizer("eval.model", self.model, revision=None, trust_remote_code=trust)
        assembly.print_date(self.tokenizer, config.run.date)
        self.benchmarks: list[Benchmark] = assembly.benchmarks(config.eval, rows, self.tokenizer)
        digest = model_digest(self.model)
        self.weights = combined(digest)
        model = {"eval.model": {"path": config.eval.model, **digest}}
        keep_inputs(folder, {"models": model, "problems": benchmark_inputs(config.eval, self.benchmarks)})
        self.sampling = assembly.eval_sampling(config)
        longest = max(len(prompt.ids) for benchmark in self.benchmarks for prompt in benchmark.prompts)
        model_config = assembly.model_config("eval.model", section, self.model)
        assembly.check_context("eval.model", model_config, "eval.max_tokens", longest, self.sampling.max_tokens)
        runtime.report()
        display.line(f"loading {config.eval.model}")
        stops = assembly.stop_ids("eval.model", section, self.model, self.tokenizer)
        log_file = folder.path / "vllm.log"
        served = assembly.Served(self.model, section, longest + self.sampling.max_tokens, log_file, stops)
        lm = None
        if isinstance(config.rollout, HfRolloutConfig):
            device = assembly.device(config.run.device)
            lm = assembly.language_model(
                "eval.model", section, self.model, device, autocast=config.optim.autocast, context=served.context
            )
        if assembly.uses_vllm(config):
            stack.enter_context(folder)  # vLLM's log goes there
            display.line(f"starting vLLM, a matter of seconds to minutes; its log is {log_file}")
        self.engine: Engine = stack.enter_context(assembly.engine(config, served, lm))
        if lm is not None:
            self.engine.check_logprobs(self.sampling, self.benchmarks[0].prompts[0])
        self.engine.load_weights(self.model)
        if not folder.held:
            stack.enter_context(folder)

    def evaluate(self, benchmark: "Benchmark") -> "Evaluation":
        """Measure one benchmark, with what an interrupted evaluation has left of it."""
        from iwopd.evaluation.evaluate import evaluate
        from iwopd.evaluation.results import SampleFile, problems_digest, write_results

        ev, path = self.config.eval, self.folder.path / "eval" / benchmark.name
        asked = {"weights": self.weights, "problems": problems_digest(benchmark.prompts)}
        samples = SampleFile(path.with_name(f"{path.name}.jsonl.zst"), asked, samples=self.sampling.n, greedy=ev.greedy)
        if samples.kept:
            total = len(benchmark.prompts) * self.sampling.n
            self.display.line(f"{benchmark.name}: {samples.kept} of {total} samples are there already")
        with self.display.stage(f"evaluating on {benchmark.name}") as advance:
            evaluation = evaluate(
                self.engine,
                benchmark,
                self.sampling,
                k=ev.k,
                greedy=ev.greedy,
                seed=self.config.seed,
                decode=lambda ids: self.tokenizer.decode(ids, skip_special_tokens=True),
                progress=advance,
                kept=samples,
                chunk=max(1, ev.chunk // self.sampling.n),
            )
        write_results(path.with_name(f"{path.name}.json"), {**self._settings(benchmark), **asked}, evaluation)
        self.display.line(evaluation_line(benchmark.name, evaluation.metrics))
        return evaluation

    def _settings(self, benchmark: "Benchmark") -> dict[str, Any]:
        source = self.config.eval.benchmarks[benchmark.name]
        confined = {"sandbox": assembly.sandbox_mode(self.config.eval)} if source.grader == "code" else {}
        return {
            **confined,
            "model": self.config.eval.model,
            "path": source.path,
            "split": source.split,
            "grader": source.grader,
            "suffix": source.suffix,
            "seed": self.config.seed,
            "sampling": asdict(self.sampling),
        }


def summary(found: Sequence["Evaluation"]) -> Table:
    """A column for each benchmark; lengths in tokens."""
    table = Table("", *(evaluation.benchmark for evaluation in found))
    for name, show in LINES.items():
        table.add_row(name, *(show(evaluation.metrics) for evaluation in found))
    return table


LINES: dict[str, Callable[[dict[str, float]], str]] = {
    "problems × samples": lambda metrics: f"{metrics['problems']:.0f} × {metrics['samples']:.0f}",
    "mean@n": lambda metrics: f"{metrics['accuracy']:.3f}",
    "95 % interval": lambda metrics: f"{metrics['accuracy_low']:.3f}–{metrics['accuracy_high']:.3f}",
    "pass@k": lambda metrics: f"{metrics['pass_at_k']:.3f} (k = {metrics['k']:.0f})",
    "greedy": lambda metrics: f"{metrics['greedy_accuracy']:.3f}" if "greedy_accuracy" in metrics else "",
    "length, mean": lambda metrics: f"{metrics['response_length']:.0f}",
    "median, p90, max": lambda metrics: ", ".join(
        f"{metrics[f'response_length_{name}']:.0f}" for name in ("median", "p90", "max")
    ),
    "cut": lambda metrics: f"{metrics['truncated']:.1%}",
    "grading given up": lambda metrics: f"{metrics['grading_timeouts']:.0f}",
}
