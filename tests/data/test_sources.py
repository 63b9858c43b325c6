"""Which problems a step gets: filters, templates, columns, mixtures, and the teacher a problem names."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.running import SMALL, iwopd, refused, rows

from iwopd.config import DataConfig, MixedSourceConfig
from iwopd.data import Filter, Mixture, PromptStream, get_column, load_rows, render, shares
from iwopd.errors import ConfigError, DataError
from iwopd.toy.tokenizer import make_tokenizer
from iwopd.types import Prompt

ROWS = [
    {"question": "1+1", "difficulty": 6.0, "topic": "Algebra", "meta": {"style": "rule", "seen": True}},
    {"question": "2+2", "difficulty": 5.5, "topic": "Geometry", "meta": {"style": "model", "seen": False}},
    {"question": "3+3", "difficulty": 8.5, "topic": "Geometry", "meta": {"style": "rule", "seen": False}},
    {"question": "4+4", "difficulty": None, "topic": "Logic", "meta": None},
]


def kept(condition: str, table: list[dict[str, Any]] = ROWS) -> list[int]:
    keeps = Filter("data.filter", condition)
    return [number for number, row in enumerate(table, start=1) if keeps(row, number)]


@pytest.mark.parametrize(
    ("condition", "numbers"),
    [
        ("difficulty >= 6", [1, 3]),
        ("6 <= difficulty < 8", [1]),
        ("difficulty == 5.5", [2]),
        ("difficulty != 5.5", [1, 3]),  # a null compares with nothing, as in SQL
        ("difficulty > -1", [1, 2, 3]),
        ("topic == 'Geometry' and difficulty > 6", [3]),
        ('topic == "Logic" or difficulty > 8', [3, 4]),
        ("not topic == 'Geometry'", [1, 4]),
        ("topic in ['Algebra', 'Logic']", [1, 4]),
        ("topic not in ('Algebra', 'Logic')", [2, 3]),
        ("'eom' in topic", [2, 3]),
        ("meta.style == 'rule'", [1, 3]),
        ("meta.seen", [1]),
        ("not meta.seen and (difficulty < 6 or topic == 'Logic')", [2, 4]),
    ],
)
def test_a_filter_keeps_the_rows_that_fulfil_it(condition: str, numbers: list[int]) -> None:
    assert kept(condition) == numbers


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("difficulty >=", "not a condition"),
        ("difficulty = 6", "not a condition"),
        ("", "not a condition"),
        ("6", "6 is not a condition"),
        ("difficulty is 6", "`is` is not known"),
        ("difficulty + 1 > 6", "difficulty + 1 is neither a column nor a value"),
        ("__import__('os').system('true')", "is not a condition"),
        ("open('x') == 1", "is neither a column nor a value"),
        ("(lambda: 1)() == 1", "is neither a column nor a value"),
        ("f'{difficulty}' == '6'", "is neither a column nor a value"),
        ("(" * 500 + "difficulty" + ")" * 500, "not a condition"),
        ("not " * 5000 + "difficulty", "not a condition"),
    ],
)
def test_what_is_no_filter_is_refused_and_nothing_is_executed(condition: str, says: str) -> None:
    with pytest.raises(ConfigError, match=r"data.filter=") as caught:
        Filter("data.filter", condition)
    assert says in str(caught.value)


def test_a_cell_of_another_type_is_named() -> None:
    with pytest.raises(DataError, match="row 2: the text 'seven' cannot be ordered against 6"):
        kept("difficulty >= 6", [{"difficulty": 7}, {"difficulty": "seven"}])


def jsonl(file: Path, table: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in table))
    return str(file)


def parquet(file: Path, table: list[dict[str, Any]]) -> str:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), str(file))
    return str(file)


@pytest.mark.parametrize("write", [jsonl, parquet])
def test_rows_are_filtered_before_they_are_limited(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / f"rows.{write.__name__}", ROWS)
    source = DataConfig(path=path, prompt_column="question", filter="meta.style == 'rule'", limit=2)
    assert [row["question"] for row in load_rows(source, "data", answers=False)] == ["1+1", "3+3"]


def test_of_a_table_only_the_named_columns_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Solutions that stand beside the problems may be gigabytes."""
    path = parquet(tmp_path / "rows.parquet", ROWS)
    source = DataConfig(path=path, prompt_column="question", filter="difficulty >= 6", id_column="topic")
    (first, _) = load_rows(source, "data", answers=False)
    assert set(first) == {"question", "difficulty", "topic"}


def test_a_column_of_records_is_reached_by_dots() -> None:
    assert get_column(ROWS[0], "meta.style") == "rule"
    assert get_column(ROWS[3], "meta.style") is None
    assert get_column({"a.b": 1}, "a.b") == 1


def test_a_template_keeps_latex_as_it_is() -> None:
    source = DataConfig(path="x", template="Solve {prompt} in \\boxed{}.", suffix="\n{n}")
    (made,) = render([{"prompt": "\\frac{1}{2}{x}"}], source, make_tokenizer())
    assert made.text == "<|user|>Solve \\frac{1}{2}{x} in \\boxed{}.\n{n}<|assistant|>"


@pytest.mark.parametrize(("given", "expected"), [(None, "<no>"), (False, "<no>"), (True, "<yes>")])
def test_the_chat_template_is_reported_whether_to_think(given: bool | None, expected: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ '<yes>' if enable_thinking else '<no>' }}{{ messages[0].content }}"
    (made,) = render([{"prompt": "1+1"}], DataConfig(path="x", enable_thinking=given), tokenizer)
    assert made.text == f"{expected}1+1"


# ---------------------------------------------------------------------------------------------- mixtures


def stream(name: str, count: int, size: int, seed: int = 1) -> PromptStream:
    return PromptStream([Prompt(f"{name}/{index}", [1], "") for index in range(count)], size, seed, name)


def test_a_mixture_gives_every_source_its_share_of_every_batch() -> None:
    mixture = Mixture([stream("maths", 30, 6), stream("code", 9, 2)])
    for step in range(12):
        batch = [prompt.id for prompt in mixture.batch(step)]
        assert len(set(batch)) == 8
        assert Counter(name.split("/")[0] for name in batch) == {"maths": 6, "code": 2}
    once = Counter(prompt.id for step in range(5) for prompt in mixture.batch(step) if prompt.id[0] == "m")
    assert set(once.values()) == {1}
    assert len(once) == 30
    assert mixture.steps_per_epoch == 4
    again = Mixture([stream("maths", 30, 6), stream("code", 9, 2)])
    assert again.batch(7) == mixture.batch(7)
    assert Mixture([stream("maths", 30, 6, seed=2), stream("code", 9, 2, seed=2)]).batch(7) != mixture.batch(7)


@pytest.mark.parametrize(
    ("sizes", "updates", "exact"),
    [((8, 8), 2, True), ((12, 4), 4, True), ((8, 16, 8), 8, True), ((5, 11), 4, False), ((3, 3, 2), 2, False)],
)
def test_every_optimiser_step_sees_every_source_in_proportion(sizes: tuple, updates: int, exact: bool) -> None:
    streams = [stream(f"s{number}", 3 * size, size) for number, size in enumerate(sizes)]
    share = sum(sizes) // updates
    for step in range(5):
        batch = [prompt.id for prompt in Mixture(streams).batch(step)]
        for first in range(0, len(batch), share):
            seen = Counter(name.split("/")[0] for name in batch[first : first + share])
            for number, size in enumerate(sizes):
                off = abs(seen[f"s{number}"] - size / updates)
                assert off == 0 if exact else off < 1


def test_a_source_gives_the_same_prompts_in_the_same_order_whatever_is_beside_it() -> None:
    maths, code, more = stream("maths", 30, 6), stream("code", 9, 2), stream("more", 50, 5)

    def of_maths(*streams: PromptStream) -> list[list[str]]:
        batches = [Mixture(streams).batch(step) for step in range(12)]
        return [[prompt.id for prompt in batch if prompt.id[0:2] == "ma"] for batch in batches]

    assert of_maths(maths, code) == of_maths(maths) == of_maths(code, more, maths)


@pytest.mark.parametrize(
    ("weights", "size", "expected"),
    [
        ({"a": 1, "b": 1}, 8, {"a": 4, "b": 4}),
        ({"a": 57, "b": 25}, 1024, {"a": 712, "b": 312}),
        ({"a": 1, "b": 1, "c": 1}, 8, {"a": 3, "b": 3, "c": 2}),
        ({"a": 0.7, "b": 0.3}, 10, {"a": 7, "b": 3}),
    ],
)
def test_shares_add_up_to_the_batch(weights: dict[str, float], size: int, expected: dict[str, int]) -> None:
    assert shares(weights, size) == expected


def test_a_source_without_a_share_or_with_too_few_prompts_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.sources.b.weight=0.01: gives it none of the 8 prompts"):
        shares({"a": 1, "b": 0.01}, 8)
    with pytest.raises(ConfigError, match=r"data.sources.code: has 3 prompts, fewer than its 4"):
        stream("code", 3, 4)


MIXED = (
    *(item for item in SMALL if not item.startswith("data.limit")),
    *("run.steps=2", "run.save_every=0", "eval.every=0", "data.path=null"),
    *("+data.sources.a.path=toy://smoke", "+data.sources.a.weight=3"),
    *("+data.sources.b={path: toy://smoke, split: test, teacher: other}",),
    "+teachers.other={path: toy://smoke/student, dtype: float32}",
)


@pytest.mark.process
def test_a_run_over_a_mixture_asks_each_problems_own_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other teacher is the student itself, so its share of the batch has A = 0, and nothing else has."""
    from iwopd.training.update import update

    seen: list[tuple[str, float]] = []

    def watch(student: Any, scored: Any, *arguments: Any, **options: Any) -> Any:
        import torch

        from iwopd.training.score import trainer_logprobs

        windows = [(record.start, record.stop) for record in scored]
        own = trainer_logprobs(student, [record.rollout for record in scored], windows)
        for record, logprobs in zip(scored, own, strict=True):
            gap = torch.tensor(record.teacher_logprobs) - torch.tensor(logprobs)
            seen.append((record.rollout.prompt_id[:2], float(gap.abs().max())))
        return update(student, scored, *arguments, **options)

    monkeypatch.setattr("iwopd.training.loop.update", watch)
    assert iwopd("train", *MIXED, "run.steps=1", f"run.dir={tmp_path / 'run'}") == 0
    assert Counter(name for name, _ in seen) == {"a/": 6, "b/": 2}
    assert max(gap for name, gap in seen if name == "b/") < 1e-5
    assert min(gap for name, gap in seen if name == "a/") > 1e-2


@pytest.mark.process
def test_a_column_names_the_teacher_of_each_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = [{"prompt": f"{n}", "by": name} for n, name in enumerate(["default", "other", None, "other"] * 4)]
    path = jsonl(tmp_path / "rows.jsonl", table)
    settings = [item for item in SMALL if not item.startswith("data.")]
    settings += [f"data.path={path}", "data.batch_size=4", "data.teacher_column=by", "run.steps=1", "eval.every=0"]
    other = "+teachers.other={path: toy://smoke/teacher, dtype: float32}"
    assert "by: other is no teacher; there are default" in refused(capsys, "train", *settings)
    run = tmp_path / "run"
    assert iwopd("train", *settings, other, f"run.dir={run}") == 0
    assert rows(run / "metrics.jsonl")[1]["tokens/scored"] > 0
    source = DataConfig(path=path, teacher_column="by")
    prompts = render(load_rows(source, "data", answers=False), source, make_tokenizer())
    assert [prompt.teacher for prompt in prompts[:4]] == ["default", "other", None, "other"]


def test_a_row_without_a_teacher_has_its_sources() -> None:
    source = MixedSourceConfig(path="x", teacher="maths", teacher_column="by")
    prompts = render([{"prompt": "a", "by": "code"}, {"prompt": "b", "by": None}], source, make_tokenizer(), "both")
    assert [(prompt.id, prompt.teacher) for prompt in prompts] == [("both/train-1", "code"), ("both/train-2", "maths")]


@pytest.mark.cli
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.filter=\"id == 'none'\""], "data.filter=id == 'none': keeps none of the"),
        (['data.filter="difficulty >= 6"'], "has no such column; it has id, prompt, answer"),
        (["data.filter=difficulty >= 6"], "quote the value for it: 'data.filter=\"difficulty >= 6\"'"),
        (["data.template=Solve"], "data.template=Solve: has no place for the problem"),
        (["data.path=null"], "data.path=null: no data"),
        (
            ["data.limit=null", "+data.sources.a.path=toy://smoke"],
            "data.path=toy://smoke: data.sources has sources of its own",
        ),
        (["data.path=null", "data.limit=null", "+data.sources.a.pth=x"], "did you mean data.sources.a.path?"),
        (["data.path=null", "data.limit=null", "+data.sources.a.weight=1"], "data.sources.a.path"),
        (["+teachers.default.path=x"], "teachers.default: teacher.name is default too"),
        (["+teachers.x=y"], "teachers.x=y: not a section"),
        (["+teachers.x.path=/none"], "teachers.x.path=/none: does not exist"),
        (["+teachers.x={path: toy://smoke/teacher, device: gpu}"], "teachers.x.device=gpu: not a device"),
    ],
)
def test_mistakes_in_sources_and_teachers_are_one_line(
    overrides: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capsys, "train", *SMALL, f"run.dir={tmp_path / 'run'}", *overrides)
    assert not (tmp_path / "run").exists()
