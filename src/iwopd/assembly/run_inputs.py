"""A resumed run reads what it read when it began: the same models, the same problems, or it is refused."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from iwopd import assembly
from iwopd.assembly.inputs import Stage
from iwopd.config import Config, EvalConfig
from iwopd.errors import RunFolderError
from iwopd.runs.digests import changes, dataset_commits, model_digest, problem_digests
from iwopd.runs.folder import INPUTS, RunFolder

if TYPE_CHECKING:
    from iwopd.evaluation.evaluate import Benchmark
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
            f"choose another folder (to go on all the same, remove {folder.path / INPUTS})"
        )
    folder.inputs = inputs


def training_inputs(
    config: Config, folders: Mapping[str, str], prompts: "Sequence[Prompt]", benchmarks: "Sequence[Benchmark]"
) -> dict[str, Any]:
    """What a training run reads.

    Args:
        folders: of its models, by setting.
        prompts: to be trained on.
    """
    sections: dict[str, Any] = {"student": config.student, **assembly.scorer_sections(config)}
    models = {
        key: {"path": str(section.path), **model_digest(folders[f"{key}.path"], section.revision)}
        for key, section in sections.items()
    }
    read = {f"data.sources.{name}": each for name, each in config.data.sources.items()} or {"data": config.data}
    data = {"path": config.data.path, "digests": problem_digests(prompts), "commits": dataset_commits(read)}
    return {
        "models": {f"{key}.path": model for key, model in models.items()},
        "problems": {"data": data} | benchmark_inputs(config.eval, benchmarks),
    }


def benchmark_inputs(config: EvalConfig, benchmarks: "Sequence[Benchmark]") -> dict[str, Any]:
    """The problems of benchmarks, with their answers, or what else they are graded by."""
    found = dict[str, Any]()
    for benchmark in benchmarks:
        source = config.benchmarks[benchmark.name]
        digests = problem_digests(benchmark.prompts, graded=True, tested=source.grader == "code")
        key = f"eval.benchmarks.{benchmark.name}"
        found[key] = {"path": source.path, "digests": digests, "commits": dataset_commits({key: source})}
    return found


def read_inputs(config: Config, stage: Stage) -> dict[str, Any]:
    """What a training run would read, read here without training."""
    checked = assembly.check_inputs(config)
    folders = assembly.model_folders(assembly.model_paths(config), stage)
    tokenizer = assembly.student_tokenizer(config, folders["student.path"])
    stream, _ = assembly.prompt_stream(config, checked.rows, tokenizer)
    benchmarks = assembly.benchmarks(config.eval, checked.benchmarks, tokenizer)
    return training_inputs(config, folders, stream.prompts, benchmarks)
