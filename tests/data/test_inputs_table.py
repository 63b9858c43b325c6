# ruff: noqa: E501 (a row of a table is a line)
"""Data files as people have them: what becomes of each, as answers and ids; or the one line that refuses it."""

import bz2
import datetime
import gzip
import json
import lzma
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from iwopd.config import BenchmarkConfig
from iwopd.data import load_rows, render
from iwopd.errors import ConfigError, DataError, IwopdError
from iwopd.toy.tokenizer import make_tokenizer

Write = Callable[[Path], object]


def text(content: str, encoding: str = "utf-8") -> Write:
    return lambda file: file.write_bytes(content.encode(encoding))


def csv(*cells: str) -> str:
    return "prompt,answer\n" + "".join(f"q{number},{cell}\n" for number, cell in enumerate(cells))


def lines(*answers: str) -> str:
    """Answers as JSON."""
    return "".join(f'{{"prompt": "q{number}", "answer": {answer}}}\n' for number, answer in enumerate(answers))


def parquet(answers: Any, prompts: Any = None, **columns: Any) -> Write:
    prompts = prompts or [f"q{number}" for number in range(len(answers))]
    table = pyarrow.table({"prompt": prompts, "answer": answers, **columns})
    return lambda file: pyarrow.parquet.write_table(table, str(file))


def shards(name: str, *contents: str, **others: str) -> Write:
    """A folder of files called NAME with a number in it, and of others."""

    def write(folder: Path) -> None:
        for number, content in enumerate(contents):
            file = folder / name.format(number)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        for other, content in others.items():
            (folder / other).write_text(content)

    return write


def parquet_shards(folder: Path) -> None:
    folder.mkdir()
    for number in (1, 0):
        parquet([str(number)], [f"q{number}"])(folder / f"part-0000{number}.snappy.parquet")
    (folder / "_SUCCESS").touch()
    (folder / ".part.crc").touch()


def saved_dataset(folder: Path) -> None:
    from datasets import Dataset, DatasetDict

    parts = {name: Dataset.from_dict({"prompt": ["q"], "answer": [name]}) for name in ("train", "test")}
    DatasetDict(parts).save_to_disk(str(folder))


ANSWERS: dict[str, tuple[str, Write, list[str]]] = {
    # ------------------------------------------------------------------------------------------ csv
    "csv numbers": ("a.csv", text(csv("05", "3.10", "1e3", "42", "-0", "1_000")), ["05", "3.10", "1e3", "42", "-0", "1_000"]),
    "csv words": ("a.csv", text(csv("NaN", "null", "NA", "None", "True", "true", "inf", "N/A")), ["NaN", "null", "NA", "None", "True", "true", "inf", "N/A"]),
    "csv mixed": ("a.csv", text(csv("42", "x", "2024-01-01", "1.0")), ["42", "x", "2024-01-01", "1.0"]),
    "csv spaces": ("a.csv", text(csv(" 42", "42 ", '" 4 2 "')), [" 42", "42 ", " 4 2 "]),
    "csv big": ("a.csv", text(csv("9007199254740993", "123456789012345678901234567890")), ["9007199254740993", "123456789012345678901234567890"]),
    "csv BOM": ("a.csv", text(csv("05"), "utf-8-sig"), ["05"]),
    "csv CRLF": ("a.csv", text(csv("05", "06").replace("\n", "\r\n")), ["05", "06"]),
    "csv CR": ("a.csv", text(csv("05", "06").replace("\n", "\r")), ["05", "06"]),
    "csv quoted": ("a.csv", text(csv('"1,000"', '"a\nb"', '"say ""hi"""', '"a\r\nb"')), ["1,000", "a\nb", 'say "hi"', "a\r\nb"]),
    "csv semicolons": ("a.csv", text("prompt;answer\nq, too;3,10\n"), ["3,10"]),
    "csv tabs": ("a.csv", text("prompt\tanswer\nq, too\t05\n"), ["05"]),
    "csv bars": ("a.csv", text("prompt|answer\nq|05\n"), ["05"]),
    "tsv": ("a.tsv", text("prompt\tanswer\nq, too; more\t05\n"), ["05"]),
    "csv spaced header": ("a.csv", text("prompt, answer\nq,05\n"), ["05"]),
    "csv index": ("a.csv", text(",prompt,answer\n0,q,05\n"), ["05"]),
    "csv blank lines": ("a.csv", text("prompt,answer\n\nq,05\n\n"), ["05"]),
    "csv without last newline": ("a.csv", text("prompt,answer\nq,05"), ["05"]),
    "csv trailing separators": ("a.csv", text("prompt,answer\nq,05,\n"), ["05"]),
    "csv long cell": ("a.csv", text(f"prompt,answer\n{'x' * 200_000},05\n"), ["05"]),
    "csv emoji": ("a.csv", text(csv("\U0001f600é")), ["\U0001f600é"]),
    "csv gz": ("a.csv.gz", lambda file: file.write_bytes(gzip.compress(csv("05").encode())), ["05"]),
    "csv in capitals": ("A.CSV", text(csv("05")), ["05"]),
    # ------------------------------------------------------------------------------------------ json
    "jsonl numbers": ("a.jsonl", text(lines("42", "3.10", "1e3", "-0", "1E-7", "0.1234567890123456789", "-5.0")), ["42", "3.10", "1e3", "-0", "1E-7", "0.1234567890123456789", "-5.0"]),
    "jsonl texts": ("a.jsonl", text(lines('"05"', '"2024-01-01"', '"1e3"', '"NaN"', '"null"', '"true"', '""', '" 4 "')), ["05", "2024-01-01", "1e3", "NaN", "null", "true", "", " 4 "]),
    "jsonl big": ("a.jsonl", text(lines("9007199254740993", "123456789012345678901234567890", "1e999")), ["9007199254740993", "123456789012345678901234567890", "1e999"]),
    "jsonl truth": ("a.jsonl", text(lines("true", "false")), ["true", "false"]),
    "jsonl emoji": ("a.jsonl", text(lines('"\\ud83d\\ude00"')), ["\U0001f600"]),
    "jsonl BOM": ("a.jsonl", text(lines("3.10"), "utf-8-sig"), ["3.10"]),
    "jsonl CRLF": ("a.jsonl", text(lines("3.10", "4").replace("\n", "\r\n")), ["3.10", "4"]),
    "jsonl array": ("a.jsonl", text('[{"prompt": "q",\n "answer": 3.10}]'), ["3.10"]),
    "json": ("a.json", text('[{"prompt": "q", "answer": 3.10},\n {"prompt": "r", "answer": 42}]'), ["3.10", "42"]),
    "json dates": ("a.json", text('[{"prompt": "q", "answer": "2024-01-01"}]'), ["2024-01-01"]),
    "json of lines": ("a.json", text(lines("3.10", '"05"')), ["3.10", "05"]),
    "json of objects": ("a.json", text('{\n "prompt": "q",\n "answer": 1e3\n}\n{"prompt": "r", "answer": 42}'), ["1e3", "42"]),
    "json wrapped": ("a.json", text('{"version": "1.0", "data": [{"prompt": "q", "answer": 3.10}]}'), ["3.10"]),
    "json BOM": ("a.json", text('[{"prompt": "q", "answer": 3.10}]', "utf-8-sig"), ["3.10"]),
    "json null beside": ("a.json", text('[{"prompt": "q", "answer": 42, "n": 1}, {"prompt": "r", "answer": 43, "n": null}]'), ["42", "43"]),
    "ndjson": ("a.ndjson", text(lines("3.10")), ["3.10"]),
    "jsonl gz": ("a.jsonl.gz", lambda file: file.write_bytes(gzip.compress(lines("3.10").encode())), ["3.10"]),
    "jsonl zst": ("a.jsonl.zst", lambda file: file.write_bytes(b"".join(map(zstandard.compress, (lines("1", "2").encode(), b'{"prompt": "r", "answer": 3}')))), ["1", "2", "3"]),
    "jsonl bz2": ("a.jsonl.bz2", lambda file: file.write_bytes(bz2.compress(lines("3.10").encode())), ["3.10"]),
    "json xz": ("a.json.xz", lambda file: file.write_bytes(lzma.compress(b'[{"prompt": "q", "answer": 3.10}]')), ["3.10"]),
    "ndjson gz": ("a.ndjson.gz", lambda file: file.write_bytes(gzip.compress(lines("3.10").encode())), ["3.10"]),
    "jsonl gzipped under its name": ("a.jsonl", lambda file: file.write_bytes(gzip.compress(lines("3.10").encode())), ["3.10"]),
    # ------------------------------------------------------------------------------------------ parquet
    "parquet texts": ("a.parquet", parquet(["05", "3.10", "1e3", "2024-01-01"]), ["05", "3.10", "1e3", "2024-01-01"]),
    "parquet whole": ("a.parquet", parquet([42, 2**53 + 1, -7]), ["42", "9007199254740993", "-7"]),
    "parquet floats": ("a.parquet", parquet([3.1, 42.0, 1e300]), ["3.1", "42.0", "1e+300"]),
    "parquet short floats": ("a.parquet", parquet(pyarrow.array([0.1, 2.5], pyarrow.float32())), ["0.1", "2.5"]),
    "parquet decimals": ("a.parquet", parquet([Decimal("3.10"), Decimal("0.00"), Decimal("-5.00")]), ["3.10", "0.00", "-5.00"]),
    "parquet small decimals": ("a.parquet", parquet(pyarrow.array([Decimal("0E-10")], pyarrow.decimal128(12, 10))), ["0.0000000000"]),
    "parquet dates": ("a.parquet", parquet([datetime.date(2024, 1, 1)]), ["2024-01-01"]),
    "parquet times": ("a.parquet", parquet(pyarrow.array([datetime.datetime(2024, 1, 1, 12)], pyarrow.timestamp("ns"))), ["2024-01-01 12:00:00"]),
    "parquet truth": ("a.parquet", parquet([True, False]), ["true", "false"]),
    "parquet bytes": ("a.parquet", parquet([b"05", "é".encode()]), ["05", "é"]),
    "parquet large strings": ("a.parquet", parquet(pyarrow.array(["05"], pyarrow.large_string())), ["05"]),
    "parquet categories": ("a.parquet", parquet(pyarrow.array(["05", "5", "05"]).dictionary_encode()), ["05", "5", "05"]),
    "parquet under another name": ("a.jsonl", parquet(["05"]), ["05"]),
    # ------------------------------------------------------------------------------------------ folders
    "folder of parquet": ("rows", parquet_shards, ["0", "1"]),
    "folder of csv": ("rows", shards("{}.csv", csv("05"), csv("06"), **{"README.md": "# rows"}), ["05", "06"]),
    "folder of jsonl": ("rows", shards("{}.jsonl", lines("3.10"), "", lines("4.0")), ["3.10", "4.0"]),
    "folder of a cloned dataset": ("rows", shards("data/test-0000{}.jsonl", lines("1"), lines("2"), **{"data/train-00000.jsonl": lines("9")}), ["1", "2"]),
    "folder that datasets saved": ("rows", saved_dataset, ["test"]),
}  # fmt: skip


def answers(path: Path, **settings: Any) -> list[str | None]:
    """Of every problem, as a grader gets it; after the same checks as any evaluation's."""
    source = BenchmarkConfig(path=str(path), **settings)
    return [prompt.answer for prompt in render(load_rows(source, "data", answers=True), source, make_tokenizer())]


@pytest.mark.parametrize(("name", "write", "expected"), ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_is_the_text_that_the_file_has(name: str, write: Write, expected: list[str], tmp_path: Path) -> None:
    write(tmp_path / name)
    assert answers(tmp_path / name) == expected


REFUSED: dict[str, tuple[str, Write, str]] = {
    "csv without answer": ("a.csv", text(csv("42", "")), "row 2, column answer: null"),
    "csv header only": ("a.csv", text("prompt,answer\n"), "a.csv: no rows"),
    "csv other columns": ("a.csv", text("question,answer\nq,1\n"), "data.prompt_column=prompt: {} has no such column; it has question, answer"),
    "csv duplicate columns": ("a.csv", text("prompt,answer,answer\nq,1,2\n"), "several columns are named answer"),
    "csv cells too many": ("a.csv", text("prompt,answer\nq,1\nr, too,1\n"), "line 3: 3 cells for 2 columns"),
    "csv open quote": ("a.csv", text('prompt,answer\n"q,1\nr,2\n'), "line 3: unexpected end of data"),
    "csv latin-1": ("a.csv", text(csv("1", "é"), "latin-1"), "a.csv: line 3: not UTF-8"),
    "csv utf-16": ("a.csv", text(csv("1"), "utf-16"), "a.csv: line 1: not UTF-8 (UTF-16"),
    "csv empty": ("a.csv", text(""), "a.csv: no rows"),
    "json empty": ("a.json", text(""), "a.json: no rows"),
    "json blank": ("a.json", text(" \n"), "a.json: no rows"),
    "json empty array": ("a.json", text("[]"), "a.json: no rows"),
    "parquet empty": ("a.parquet", text(""), "a.parquet: no rows"),
    "parquet without rows": ("a.parquet", parquet([], pyarrow.array([], pyarrow.string())), "a.parquet: no rows"),
    "json malformed": ("a.json", text('[{"prompt": "q"},\n {"prompt" "r"}]'), "a.json: line 2, column 12: Expecting"),
    "json of numbers": ("a.json", text("[1, 2]"), "a.json: entry 1: a int, not an object"),
    "gzip cut short": ("a.jsonl.gz", lambda file: file.write_bytes(gzip.compress(lines(*map(str, range(999))).encode())[:-900]), "a.jsonl.gz: cannot be read"),
    "zst cut short": ("a.jsonl.zst", lambda file: file.write_bytes(zstandard.compress(lines(*map(str, range(999))).encode())[:-900]), "a.jsonl.zst: cannot be read"),
    "jsonl surrogate answer": ("a.jsonl", text(lines('"1"', '"\\ud83d"')), "row 2, column answer: not valid Unicode: half of a surrogate pair"),
    "jsonl list answer": ("a.jsonl", text(lines('["1"]')), "row 1, column answer: not a text or a number, but a list"),
    "jsonl dict answer": ("a.jsonl", text(lines('{"a": 1}')), "row 1, column answer: not a text or a number, but a dict"),
    "jsonl null answer": ("a.jsonl", text(lines("1", "null")), "row 2, column answer: null"),
    "jsonl NaN answer": ("a.jsonl", text(lines("1", "NaN")), "row 2, column answer: NaN"),
    "parquet null answer": ("a.parquet", parquet([42, None]), "row 2, column answer: null"),
    "parquet NaN answer": ("a.parquet", parquet([42.0, float("nan")]), "row 2, column answer: NaN"),
    "parquet bytes no text": ("a.parquet", parquet([b"\xff"]), "row 1, column answer: not a text or a number, but a bytes"),
    "parquet broken": ("a.parquet", text("PAR1 not really"), "a.parquet: the file cannot be read"),
    "zip": ("a.zip", text("PK"), "not a format known here; use .jsonl, .json, .csv or .parquet"),
    "excel": ("a.xlsx", text("PK"), "not a format known here"),
    "folder empty": ("rows", lambda folder: folder.mkdir(), "rows: a folder without files of data"),
    "folder mixed": ("rows", shards("{}.csv", csv("1"), **{"b.jsonl": lines("2")}), "rows: files of several formats: csv, jsonl"),
    "folder of other splits": ("rows", shards("train-{}.jsonl", lines("1")), "data.split=test: {} has files of other splits only: train"),
    "folder of subsets": ("rows", shards("{}/a.jsonl", lines("1"), lines("2")), "its files lie in several folders: 0, 1"),
    "no such file": ("none.parquet", lambda file: None, "there is no such file"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "write", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_read_as_meant_is_refused(name: str, write: Write, says: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write(path)
    with pytest.raises((ConfigError, DataError)) as caught:
        answers(path)
    assert says.format(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "not a path" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- ids and filters


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "prompt,answer,n\nq,1,05\nr,1,5\n", ["05", "5"]),
        ("a.jsonl", '{"prompt": "q", "answer": 1, "n": 5}\n{"prompt": "r", "answer": 1, "n": "05"}\n', ["5", "05"]),
        ("a.jsonl", '{"prompt": "q", "answer": 1, "n": 1.0}\n{"prompt": "r", "answer": 1, "n": 1}\n', ["1.0", "1"]),
    ],
)
def test_ids_are_distinguished_as_they_are_written(
    name: str, content: str, expected: list[str], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    source = BenchmarkConfig(path=str(tmp_path / name), id_column="n")
    prompts = render(load_rows(source, "data", answers=True), source, make_tokenizer())
    assert [prompt.id for prompt in prompts] == expected


@pytest.mark.parametrize(
    ("second", "says"),
    [("5", "row 2, column n: duplicate id 5, as in row 1"), ('"\\udc00"', "row 2, column n: not valid Unicode")],
)
def test_an_id_that_cannot_be_one(second: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"prompt": "q", "answer": 1, "n": "5"}}\n{{"prompt": "r", "answer": 1, "n": {second}}}\n')
    source = BenchmarkConfig(path=str(file), id_column="n")
    with pytest.raises(IwopdError) as caught:
        render(load_rows(source, "data", answers=True), source, make_tokenizer())
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.csv", text(csv("42", ""))),
        ("a.json", text('[{"prompt": "q", "answer": 42}, {"prompt": "r", "answer": null}]')),
        ("a.jsonl", text(lines("42", "null"))),
        ("a.parquet", parquet([42, None])),
    ],
)
def test_a_null_beside_a_whole_number_leaves_it_whole(name: str, write: Write, tmp_path: Path) -> None:
    write(tmp_path / name)
    assert answers(tmp_path / name, limit=1) == answers(tmp_path / name, filter="answer > 1") == ["42"]


LEVELS = [
    ("5.5", 5.5), ("6", 6), ("6.0", 6.0), ("10", 10), ("", None), ("9007199254740993", 9007199254740993), ("1e1", 10.0),
]  # fmt: skip


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "texts.jsonl"])
@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("level >= 6", [1, 2, 3, 5, 6]),
        ("level < 10", [0, 1, 2]),
        ("level == 6", [1, 2]),
        ("level != 6", [0, 3, 5, 6]),
        ("level == 5.5 or level == 9007199254740993", [0, 5]),
        ("level > 9007199254740992", [5]),
        ("level in [6, 10]", [1, 2, 3, 6]),
        ("level not in [6, 10]", [0, 5]),
        ("easy", [0, 2, 4, 6]),
        ("not easy and level > 6", [3, 5]),
        ("easy == True and level < 6", [0]),
        ("code == '05'", [0]),
        ("code != '05' and level == 6", [1, 2]),
    ],
)
def test_a_filter_keeps_the_same_rows_of_every_format(
    suffix: str, condition: str, kept: list[int], tmp_path: Path
) -> None:
    """Numbers of a csv file are text, and are compared as numbers all the same."""
    texts = [level or None for level, _ in LEVELS]
    columns: dict[str, list[Any]] = {
        "prompt": [f"q{number}" for number in range(len(LEVELS))],
        "answer": list(map(str, range(len(LEVELS)))),
        "easy": [number % 2 == 0 for number in range(len(LEVELS))],
        "code": ["05"] + ["5"] * (len(LEVELS) - 1),
    }
    file = tmp_path / f"a.{suffix}"
    records = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if suffix == "parquet":
        numbers = [None if level is None else Decimal(str(level)) for _, level in LEVELS]
        levels = pyarrow.array(numbers, pyarrow.decimal128(20, 2))
        pyarrow.parquet.write_table(pyarrow.table({**columns, "level": levels}), str(file))
    elif suffix == "csv":
        cells = [[str(value) for value in record.values()] for record in records]
        written = [",".join([*row, level or ""]) for row, level in zip(cells, texts, strict=True)]
        file.write_text("\n".join([",".join([*columns, "level"]), *written]))
    else:
        levels = texts if suffix == "texts.jsonl" else [level for _, level in LEVELS]
        found = [{**record, "level": level} for record, level in zip(records, levels, strict=True)]
        file.write_text("\n".join(map(json.dumps, found)))
    assert answers(file, filter=condition) == list(map(str, kept))


def test_spellings_of_no_value_compare_with_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(
        "prompt,answer,level\n" + "".join(f"q,{n},{cell}\n" for n, cell in enumerate(["7", "NA", "NaN", ""]))
    )
    assert answers(file, filter="level >= 6") == ["0"]
    assert answers(file, filter="level != 6") == ["0"]
    file.write_text("prompt,answer,level\nq,0,hard\n")
    with pytest.raises(DataError, match="row 1: the text 'hard' cannot be ordered against 6"):
        answers(file, filter="level >= 6")


def test_dates_compare_with_text(tmp_path: Path) -> None:
    days = [datetime.date(2024, month, 1) for month in (1, 2)]
    parquet(["0", "1"], day=days)(tmp_path / "a.parquet")
    assert answers(tmp_path / "a.parquet", filter="day >= '2024-01-15'") == ["1"]


def test_a_parquet_file_needs_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH", "HF_CACHE_HOME"):
        monkeypatch.setattr(f"datasets.config.{name}", "/proc/none", raising=False)
    parquet(["05"])(tmp_path / "a.parquet")
    assert answers(tmp_path / "a.parquet") == ["05"]
