"""A resumed run reads what it read when it began: the same models, the same problems, or it is refused."""

from collections.abc import Mapping, Sequence
from typing import Any

from iwopd.assembly.evaluation import benchmarks
from iwopd.assembly.inputs import prompt_stream, student_tokenizer
from iwopd.config import Config, EvalConfig
from iwopd.errors import RunFolderError
from iwopd.evaluation.evaluate import Benchmark
from iwopd.preflight.checks import check_inputs
from iwopd.preflight.digests import changes, dataset_commits, model_digest, problem_digests
from iwopd.preflight.paths import Stage, model_folders, model_paths, scorer_sections
from iwopd.preflight.problems import teacher_templates
from iwopd.runs.folder import INPUTS, RunFolder
from iwopd.types import Prompt


def keep_inputs(folder: RunFolder, inputs: dict[str, Any]) -> None:
    """Have the run folder keep what a run reads; of a run that is resumed, see that it is what it was.

    Raises:
        RunFolderError: it is not; says which model's files, or which problems.
    """
    then = folder.saved_inputs() if folder.resume else None
    differing = changes(then, inputs) if then else []
    if differing:
        raise RunFolderError(
            f"run.dir={folder.path}: this run began with other inputs: {'; '.join(differing)}; give it those again, or "
            f"choose another folder (to resume all the same, remove {folder.path / INPUTS})"
        )
    folder.inputs = inputs


def training_inputs(
    config: Config, folders: Mapping[str, str], prompts: Sequence[Prompt], graded: Sequence[Benchmark]
) -> dict[str, Any]:
    """What a training run reads.

    Args:
        folders: of its models, by setting.
        prompts: to be trained on.
    """
    sections: dict[str, Any] = {"student": config.student, **scorer_sections(config)}
    models = {
        key: {"path": str(section.path), **model_digest(folders[f"{key}.path"], section.revision)}
        for key, section in sections.items()
    }
    read = {f"data.sources.{name}": each for name, each in config.data.sources.items()} or {"data": config.data}
    data = {"path": config.data.path, "digests": problem_digests(prompts), "commits": dataset_commits(read)}
    return {
        "models": {f"{key}.path": model for key, model in models.items()},
        "problems": {"data": data} | benchmark_inputs(config.eval, graded),
    }


def benchmark_inputs(config: EvalConfig, graded: Sequence[Benchmark]) -> dict[str, Any]:
    """The problems of benchmarks, with their answers, or what else they are graded by."""
    found = dict[str, Any]()
    for benchmark in graded:
        source = config.benchmarks[benchmark.name]
        digests = problem_digests(benchmark.prompts, graded=True, tested=source.grader == "code")
        key = f"eval.benchmarks.{benchmark.name}"
        found[key] = {"path": source.path, "digests": digests, "commits": dataset_commits({key: source})}
    return found


def read_inputs(config: Config, stage: Stage) -> dict[str, Any]:
    """What a training run would read, read here without training."""
    checked = check_inputs(config)
    folders = model_folders(model_paths(config), stage)
    tokenizer = student_tokenizer(config, folders["student.path"])
    stream, _ = prompt_stream(config, checked.rows, tokenizer)
    graded = benchmarks(config.eval, checked.benchmarks, tokenizer, teacher_templates(config).get(None))
    return training_inputs(config, folders, stream.prompts, graded)
