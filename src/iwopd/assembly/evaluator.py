"""A model to be measured, ready to be asked, and what an evaluation of it leaves."""

from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from iwopd import assembly
from iwopd.assembly.run_inputs import benchmark_inputs, keep_inputs
from iwopd.config import Config, HfRolloutConfig
from iwopd.data import Row
from iwopd.evaluation.evaluate import Benchmark, Evaluation, evaluate
from iwopd.evaluation.results import SampleFile, problems_digest, write_results
from iwopd.machine import runtime
from iwopd.preflight.digests import combined, model_digest
from iwopd.preflight.graders import sandbox_mode
from iwopd.preflight.paths import model_folders
from iwopd.rollout.base import Engine
from iwopd.runs.console import Display, evaluation_line
from iwopd.runs.folder import RunFolder


class Evaluator:
    """The model, ready to be asked; the run folder is made as late as can be."""

    def __init__(
        self, config: Config, folder: RunFolder, rows: dict[str, list[Row]], display: Display, stack: ExitStack
    ):
        assert config.eval.model is not None
        runtime.apply()
        self.config, self.folder, self.display = config, folder, display
        self.model = model_folders({"eval.model": config.eval.model}, display.stage)["eval.model"]
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
        if not folder.locked:
            stack.enter_context(folder)

    def evaluate(self, benchmark: Benchmark) -> Evaluation:
        """Measure one benchmark, with what an interrupted evaluation has left of it."""
        ev, path = self.config.eval, self.folder.path / "eval" / benchmark.name
        asked = {"weights": self.weights, "problems": problems_digest(benchmark.prompts)}
        samples = SampleFile(
            path.with_name(f"{path.name}.jsonl.zst"),
            asked,
            samples=self.sampling.n,
            greedy=ev.greedy,
            check=self.folder.lock.check,
        )
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

    def _settings(self, benchmark: Benchmark) -> dict[str, Any]:
        source = self.config.eval.benchmarks[benchmark.name]
        confined = {"sandbox": sandbox_mode(self.config.eval)} if source.grader == "code" else {}
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
