"""Rows from files of every format, and how they become prompts."""

import json
import re
from pathlib import Path

import pytest
from support.composing import composed
from support.paths import PROBLEMS, SHARED, WORD_PROBLEMS

from iwopd import assembly
from iwopd.config import BenchmarkConfig, DataConfig
from iwopd.data import load_rows, render, text_of
from iwopd.preflight.problems import benchmark_rows
from iwopd.toy.tokenizer import make_tokenizer

ROWS = [{"prompt": "1+1", "answer": 2}, {"prompt": "naïve\n2+2", "answer": 4}]


def write(file: Path) -> str:
    import pyarrow
    from pyarrow import csv, parquet

    if file.suffix == ".jsonl":
        file.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    elif file.suffix == ".json":
        file.write_text(json.dumps(ROWS))
    else:
        save = parquet.write_table if file.suffix == ".parquet" else csv.write_csv
        save(pyarrow.Table.from_pylist(ROWS), str(file))
    return str(file)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_every_format_gives_the_same_rows(suffix: str, tmp_path: Path) -> None:
    source = BenchmarkConfig(path=write(tmp_path / f"rows.{suffix}"))
    found = [{name: text_of(value) for name, value in row.items()} for row in load_rows(source, "data", answers=True)]
    assert found == [{name: str(value) for name, value in row.items()} for row in ROWS]


def test_a_prompt_is_a_user_turn_with_system_message_and_suffix() -> None:
    source = DataConfig(path="x", system="Think.", suffix="\nBox it.", answer_column="answer")
    first, _ = render(ROWS, source, make_tokenizer())
    assert first.text == "<|user|>Think.\n1+1\nBox it.<|assistant|>"
    assert (first.id, first.answer, len(first.ids)) == ("train-1", "2", 2 + len("Think.\n1+1\nBox it."))


def test_messages_are_taken_as_they_are_and_a_model_without_template_gets_bare_text() -> None:
    rows = [{"prompt": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}]
    tokenizer = make_tokenizer()
    assert render(rows, DataConfig(path="x"), tokenizer)[0].text == "<|user|>Hi<|assistant|>Ho<|eos|><|assistant|>"
    tokenizer.chat_template = None
    assert render(ROWS, DataConfig(path="x"), tokenizer)[0].text == "1+1"


public = pytest.mark.skipif(not SHARED.is_dir(), reason="the public problems do not lie beside this checkout")


@pytest.mark.parametrize(
    ("benchmark", "file"),
    [
        ("aime24", PROBLEMS),
        ("gsm8k", WORD_PROBLEMS),
        *(
            pytest.param(benchmark, SHARED / f"{name}.jsonl", marks=public, id=name)
            for benchmark, name in [("aime24", "aime24"), ("aime25", "aime25"), ("gsm8k", "gsm8k-test")]
        ),
    ],
)
def test_problems_of_the_public_forms_load_and_encode(benchmark: str, file: Path) -> None:
    config = composed(f"benchmark=[{benchmark}]", f"eval.benchmarks.{benchmark}.path={file}")
    source, rows = config.eval.benchmarks[benchmark], benchmark_rows(config.eval)
    (loaded,) = assembly.benchmarks(config.eval, rows, make_tokenizer())
    assert len(loaded.prompts) == len(file.read_text().splitlines())
    for made, row in zip(loaded.prompts, rows[benchmark], strict=True):
        assert len(made.ids) == len(f"{row[source.prompt_column]}{source.suffix}".encode()) + 2
        assert re.fullmatch(r"-?\d[\d,]*(\.\d+)?", str(made.answer)), "the reference alone, without its solution"
