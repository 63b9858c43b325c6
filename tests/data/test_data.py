"""Rows from files of every format, and how they become prompts."""

import json
from pathlib import Path

import pytest
from support.paths import SHARED

from iwopd.config import BenchmarkConfig, DataConfig
from iwopd.data import load_rows, render, text_of
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


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public problems (AIME, GSM8K) do not lie beside this checkout")
@pytest.mark.parametrize(
    ("name", "prompt", "count"),
    [("aime24", "problem", 30), ("aime25", "problem", 30), ("gsm8k-test", "question", None)],
)
def test_public_problems_load_and_encode(name: str, prompt: str, count: int | None) -> None:
    source = BenchmarkConfig(path=str(SHARED / f"{name}.jsonl"), prompt_column=prompt)
    rows = load_rows(source, "data", answers=True)
    assert count in (None, len(rows))
    for made, row in zip(render(rows, source, make_tokenizer()), rows, strict=True):
        assert len(made.ids) == len(row[prompt].encode()) + 2
