"""The toy task says what it teaches; the tokenizer takes any text; the models are made once."""

import os
import random
import re
import subprocess
import sys
from itertools import pairwise

import pytest

from iwopd.toy import SMOKE, STANDARD, toy_rows
from iwopd.toy import models as toy_models
from iwopd.toy.task import ANSWER_PATTERN, Noise, make_problem, problems, write_response
from iwopd.toy.tokenizer import make_tokenizer
from iwopd.toy.training import ModelRecipe


@pytest.mark.parametrize("task", [STANDARD, SMOKE])
def test_clean_traces_walk_the_chain_and_end_in_the_answer(task) -> None:
    rng = random.Random(0)
    for _ in range(200):
        problem = make_problem(task, rng)
        edges = {edge[0]: edge for edge in re.findall("...", problem.prompt.split("?")[0])}
        plan, execution = write_response(problem, task, rng, Noise()).split("|")
        assert plan[0] == problem.prompt[-2]
        assert all(edges[child][1] == parent for child, parent in pairwise(plan))
        assert edges[plan[-1]][1] == "."
        steps, answer = execution.split("#")
        assert [step.split(":")[0] for step in steps.split(";")] == [edges[node] for node in reversed(plan)]
        assert answer == problem.answer == "".join(edges[node][2] for node in reversed(plan))


def test_the_example_of_the_docstring() -> None:
    problem = make_problem(STANDARD, random.Random(1))
    problem = type(problem)(chain="ceahf", digits="77631", depth=4, prompt="fh1ae6ec7c.7ha3?h:")
    assert write_response(problem, STANDARD, random.Random(0), Noise()) == "haec|c.7:7;ec7:77;ae6:776;ha3:7763#7763"


def test_noise_makes_a_weak_student_and_late_noise_leaves_the_plan_alone() -> None:
    rng = random.Random(0)

    def traces(noise: Noise) -> list[tuple[bool, bool]]:
        found = []
        for problem in problems(STANDARD, "test", 256):
            plan, _, rest = write_response(problem, STANDARD, rng, noise).partition("|")
            clean = write_response(problem, STANDARD, rng, Noise()).partition("|")[0]
            right = re.search(ANSWER_PATTERN, rest)
            found.append((plan == clean, right is not None and right[1] == problem.answer))
        return found

    weak, late = traces(Noise(plan=0.3, execution=0.05)), traces(Noise(execution=0.25))
    assert 0.1 < sum(right for _, right in weak) / 256 < 0.4
    assert 0.1 < sum(right for _, right in late) / 256 < 0.4
    assert all(plan for plan, _ in late)


def test_no_test_problem_is_trained_on() -> None:
    train, test = (toy_rows("data.path", "toy://smoke", split) for split in ("train", "test"))
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    assert len({row["id"] for row in train}) == len(train)
    assert toy_rows("data.path", "toy://smoke", "test") == test


@pytest.mark.parametrize("text", ["fh1?h:", "naïve café 数学 🙂", "\x00\x7f\n\t  two  spaces ", "", "a" * 5000])
def test_any_text_encodes_and_comes_back(text: str) -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == 260


def test_the_chat_template_marks_turns() -> None:
    tokenizer = make_tokenizer()
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
        {"role": "user", "content": "Hu"},
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>Be brief.\nHi<|assistant|>Ho<|eos|><|user|>Hu<|assistant|>"


@pytest.fixture
def tiny_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path) -> str:
    """A model of two training steps, in a cache of its own."""
    recipe = ModelRecipe(SMOKE, Noise(), width=32, layers=1, heads=1, steps=2, lr=1e-3, seed=0, key_value_heads=1)
    monkeypatch.setattr(toy_models, "RECIPES", {"tiny/model": recipe})
    monkeypatch.setenv("IWOPD_CACHE", str(tmp_path))
    return "toy://tiny/model"


def test_a_model_is_made_once_and_a_failed_one_leaves_nothing(
    tiny_recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def interrupted(recipe, folder, advance) -> None:
        folder.mkdir()
        (folder / "config.json").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(toy_models, "train_model", interrupted)
        with pytest.raises(KeyboardInterrupt):
            toy_models.make_model(tiny_recipe, lambda done, total: None)
    folder = toy_models.cached_folder(toy_models.RECIPES["tiny/model"], tiny_recipe)
    assert not toy_models.is_made(folder)
    assert [entry.suffix for entry in folder.parent.iterdir()] == [".lock"]
    for _ in range(2):
        toy_models.make_model(tiny_recipe, lambda done, total: made.append(done))
    assert made == [1, 2]
    assert {"model.safetensors", "tokenizer.json", "generation_config.json", "chat_template.jinja"} <= {
        entry.name for entry in folder.iterdir()
    }


@pytest.mark.process
def test_two_processes_that_ask_at_once_make_it_once(tmp_path) -> None:
    """Real processes and a real model: both wait on the lock, one trains."""
    code = (
        "import sys; from iwopd.toy import SMOKE, Noise, models; from iwopd.toy.training import ModelRecipe\n"
        "shape = {'width': 32, 'layers': 1, 'heads': 1, 'key_value_heads': 1}\n"
        "recipe = ModelRecipe(SMOKE, Noise(), steps=5, lr=1e-3, seed=0, **shape)\n"
        "models.RECIPES = {'tiny/model': recipe}\n"
        "models.make_model('toy://tiny/model', lambda done, total: print(done, flush=True))"
    )
    environment = {**os.environ, "IWOPD_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    said = sorted(process.communicate()[0].split() for process in running)
    assert [process.returncode for process in running] == [0, 0]
    assert said == [[], ["1", "2", "3", "4", "5"]]
