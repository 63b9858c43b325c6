"""The model card of final/: what was trained on what and how, what came of it, and how to use it."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from iwopd.config import Config, TeacherConfig
from iwopd.config.models import SELF
from iwopd.config.stored import stored
from iwopd.runs import about as run_record
from iwopd.runs.files import read_rows
from iwopd.runs.public import code, hub_name, public, public_overrides, text

MODEL = "MODEL"  # placeholder for the model's path or name in the card's examples
CITATION = """\
@article{xie2026position,
  title  = {On the Position Bias of On-Policy Distillation},
  author = {Xie and Zhu and Wen and Chen and Wang},
  year   = {2026},
  eprint = {2606.22600},
  archivePrefix = {arXiv}
}"""


def write_card(folder: Path, run: Path, config: Config, *, steps: int, tokens: int, chat: bool) -> None:
    """README.md in `folder`, in the hub's format.

    Args:
        run: the run's folder, with about.json and metrics.jsonl.
        steps: optimisation steps taken.
        tokens: response tokens generated for them.
        chat: the tokenizer has a chat template.
    """
    about = run_record.read(run) or run_record.about()
    results = _results(run / "metrics.jsonl", list(config.eval.benchmarks))
    sections = (
        _about(config),
        "## Results\n\n" + _results_table(results, steps),
        "## Training\n\n" + _settings(config, steps, tokens),
        "## Use\n\n" + _examples(config, chat),
        "## Reproduce\n\n" + _reproduction(config, about),
        f"## Citation\n\n```bibtex\n{CITATION}\n```",
    )
    front = _front_matter(config, results).to_yaml()
    ModelCard(f"---\n{front}\n---\n\n" + "\n\n".join(sections) + "\n").save(folder / "README.md")


# ---------------------------------------------------------------------------------------------- front matter


def _front_matter(config: Config, results: dict[str, list[dict[str, Any]]]) -> ModelCardData:
    evaluated = [
        EvalResult(
            task_type="text-generation",
            dataset_type=hub_name(config.eval.benchmarks[name].path or "") or name,
            dataset_name=name,
            metric_type="accuracy",
            metric_name=f"mean@{found[-1]['samples']:.0f}",
            metric_value=round(found[-1]["accuracy"], 4),
        )
        for name, found in results.items()
    ]
    base = hub_name(config.student.path)
    return ModelCardData(
        model_name=(config.run.name or "student") if evaluated else None,
        eval_results=evaluated or None,
        base_model=base,
        base_model_relation="finetune" if base else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        datasets=sorted(set(_hub_datasets(asdict(config.data)))) or None,
        tags=["iwopd", "on-policy-distillation", "distillation"],
    )


def _hub_datasets(node: object) -> Iterator[str]:
    if isinstance(node, Mapping):
        path = node.get("path")
        if isinstance(path, str) and hub_name(path):
            yield path
        for value in node.values():
            yield from _hub_datasets(value)


# ---------------------------------------------------------------------------------------------- sections


def _teacher(section: TeacherConfig) -> str:
    if section.path != SELF:
        return code(section.path) + (", which read prompts of its own" if section.prompt_template else "")
    return f"itself ({section.weights} weights), which read prompts of its own"


def _about(config: Config) -> str:
    return (
        f"# {text(config.run.name or 'student')}\n\n{code(config.student.path)} after on-policy distillation from "
        f"{_teacher(config.teacher)}: the student wrote answers, the teacher scored "
        "the very same tokens, and the student moved toward the teacher. Made with iwopd, which implements "
        "[*On the Position Bias of On-Policy Distillation*](https://arxiv.org/abs/2606.22600)."
    )


def _results(file: Path, benchmarks: list[str]) -> dict[str, list[dict[str, Any]]]:
    """For every benchmark its evaluations, in order: step, and the metrics under their names without eval/."""
    rows = read_rows(file)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in benchmarks:
        prefix = "eval/" if len(benchmarks) == 1 else f"eval/{name}/"
        measured = [row for row in rows if f"{prefix}accuracy" in row]
        if measured:
            found[name] = [
                {"step": row["step"]}
                | {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}
                for row in measured
            ]
    return found


def _results_table(results: dict[str, list[dict[str, Any]]], steps: int) -> str:
    if not results:
        return "Not evaluated."
    lines = [
        "| benchmark | problems | metric | before | after |",
        "|---|---|---|---|---|",
    ]
    for name, evaluations in results.items():
        first, last = evaluations[0], evaluations[-1]
        before = _with_interval(first, "accuracy") if first["step"] == 0 else "–"
        k, samples = f"{last['k']:.0f}", f"{last['samples']:.0f}"
        lines.append(
            f"| {text(name)} | {last['problems']:.0f} | mean@{samples} | {before} | "
            f"{_with_interval(last, 'accuracy')} |"
        )
        if last["k"] > 1:
            before = _with_interval(first, "pass_at_k") if first["step"] == 0 else "–"
            lines.append(f"| | | pass@{k} | {before} | {_with_interval(last, 'pass_at_k')} |")
    said = "Accuracies with 95 % intervals over problems, measured by the training run"
    last_step = max(evaluations[-1]["step"] for evaluations in results.values())
    return "\n".join(lines) + f"\n\n{said} before the first step and after step {last_step} of {steps}."


def _with_interval(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:.3f} [{metrics[f'{name}_low']:.3f}, {metrics[f'{name}_high']:.3f}]"


def _settings(config: Config, steps: int, tokens: int) -> str:
    rollout, optim, lora = config.rollout, config.optim, config.student.lora
    adapters = f"all {lora.targets}, rank {lora.rank}, alpha {lora.alpha}; merged into these weights"
    facts = {
        "student (base model)": code(config.student.path),
        "teacher": _teacher(config.teacher),
        **{f"teacher {text(name)}": _teacher(each) for name, each in config.teachers.items()},
        "data": ", ".join(code(path) for path in _paths(asdict(config.data))),
        "weighting of tokens": _listed(asdict(config.weighting)),
        "loss": _listed(asdict(config.loss)),
        "steps": f"{steps}, each of {config.data.batch_size} prompts, {rollout.n} rollouts of each; {tokens:,} tokens "
        "generated",
        "sampling": f"temperature {rollout.temperature:g}, top-p {rollout.top_p:g}, top-k {rollout.top_k}, "
        f"at most {rollout.max_tokens} tokens",
        "optimiser": f"AdamW, learning rate {optim.lr:g} ({optim.schedule}, {optim.warmup_steps} steps of warm-up), "
        f"weight decay {optim.weight_decay:g}, gradients clipped at {optim.grad_clip}",
        "trained": adapters if lora.rank else "all weights",
        "precision": config.student.dtype + (", bfloat16 autocast" if optim.autocast else ""),
        "seed": str(config.seed),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])


def _paths(node: object) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("path"), str):
            yield node["path"]
        for value in node.values():
            yield from _paths(value)


def _listed(section: Mapping[str, Any]) -> str:
    named = {name: value for name, value in section.items() if value is not None}
    first = str(named.pop("scheme", None) or named.pop("kind", ""))
    return ", ".join([code(first), *(f"{name} {text(str(value))}" for name, value in named.items())])


def _examples(config: Config, chat: bool) -> str:
    tokens, trust = config.rollout.max_tokens, ", trust_remote_code=True" if config.student.trust_remote_code else ""
    question = json.dumps("What is 12 + 30?" + (config.data.suffix or ""), ensure_ascii=False)
    question = question.replace("`", r"\u0060")  # the example's fence must not end here
    given = f'[{{"role": "user", "content": {question}}}]' if chat else question
    encode = (
        'tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt")'
        if chat
        else 'tokenizer(prompt, return_tensors="pt")'
    )
    return f"""\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "{MODEL}"  # this folder, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(path{trust})
model = AutoModelForCausalLM.from_pretrained(path, dtype="auto"{trust})
prompt = {given}
inputs = {encode}
output = model.generate(**inputs, max_new_tokens={tokens}, do_sample=True, temperature=1.0, top_p=1.0, top_k=0)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

With vLLM:

```python
from vllm import LLM, SamplingParams

model = LLM("{MODEL}"{trust})
prompt = {given}
[output] = model.{"chat" if chat else "generate"}(prompt, SamplingParams(temperature=1.0, max_tokens={tokens}))
print(output.outputs[0].text)
```"""


def _reproduction(config: Config, about: Mapping[str, Any]) -> str:
    program, *overrides = about["command"]
    command = " ".join([program, *map(shlex.quote, public_overrides(overrides))]).replace("```", "")
    versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    commit = f", commit {about['commit']}" if about["commit"] else ""
    changed = " with uncommitted changes" if about["uncommitted_changes"] else ""
    settings = yaml.safe_dump(public(stored(config, "train")), sort_keys=False, allow_unicode=True).replace("```", "")
    return (
        f"```sh\n{command}\n```\n\nPython {about['python']}, {versions}{commit}{changed}. Of local paths only the last "
        f"name is shown.\n\n<details><summary>All settings</summary>\n\n```yaml\n{settings}```\n\n</details>"
    )
