"""Chats as datasets hold them, and templates and tokenizers as models have them: what the student is asked."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from support.composing import composed
from support.running import SMALL, iwopd
from tokenizers.processors import TemplateProcessing

from iwopd.config import DataConfig
from iwopd.data import load_rows, render
from iwopd.doctor import prompts
from iwopd.doctor.findings import Section
from iwopd.doctor.sources import Source
from iwopd.errors import DataError
from iwopd.toy.tokenizer import make_tokenizer

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
TOOL = {"role": "tool", "content": "3"}
TURNS = [("user", "Hi"), ("assistant", "Ho"), ("user", "So?")]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
SEARCH = {"type": "function", "function": {"name": "find", "arguments": {"words": ["x"], "deep": {"most": 3}}}}


def jsonl(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def parquet(file: Path, rows: list[dict[str, Any]]) -> str:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), str(file))
    return str(file)


def asked(problems: list[Any], tokenizer: Any = None, **settings: Any) -> list[str]:
    """The rendered texts."""
    rows = [{"prompt": problem} for problem in problems]
    return [prompt.text for prompt in render(rows, DataConfig(path="x", **settings), tokenizer or make_tokenizer())]


def refusal(problems: list[Any], tokenizer: Any = None, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        asked(problems, tokenizer, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------- special tokens


@pytest.mark.parametrize(
    ("around", "before"),
    [
        ("$A <|eos|>", []),
        ("<|user|> $A <|eos|>", [258]),
        ("<|user|> $A <|pad|> <|eos|>", [258]),
        ("<|user|> $A", [258]),
    ],
)
@pytest.mark.parametrize("text", ["1+1", "a<|eos|>"])
def test_nothing_is_put_after_a_prompt(around: str, before: list[int], text: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    specials = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|eos|>", "<|user|>", "<|pad|>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=around, special_tokens=specials)
    (made,) = render([{"prompt": text}], DataConfig(path="x"), tokenizer)
    assert made.ids == before + tokenizer.encode(text, add_special_tokens=False)
    assert len(made.ids) == len(before) + (2 if "eos" in text else len(text))


# ---------------------------------------------------------------------------------------------- chats


@pytest.mark.parametrize(
    "chat",
    [
        [USER, ANSWER, {"role": "user", "content": "So?"}],
        [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}, {"from": "human", "value": "So?"}],
        {"role": ["user", "assistant", "user"], "content": ["Hi", "Ho", "So?"]},
        {"from": ["human", "gpt", "human"], "value": ["Hi", "Ho", "So?"]},
        [{"role": role, "content": [{"type": "text", "text": said}]} for role, said in TURNS],
    ],
    ids=["messages", "ShareGPT", "lists", "ShareGPT lists", "parts"],
)
def test_a_chat_is_read_in_every_form_and_from_every_format(chat: Any, tmp_path: Path) -> None:
    for write in (jsonl, parquet):
        path = write(tmp_path / f"a.{write.__name__}", [{"conversations": chat}])
        source = DataConfig(path=path, prompt_column="conversations", suffix=" Think.")
        (made,) = render(load_rows(source, "data", answers=False), source, make_tokenizer())
        assert made.text == "<|user|>Hi<|assistant|>Ho<|eos|><|user|>So? Think.<|assistant|>"


def test_parts_are_joined_and_only_text_is_read() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert asked([[{"role": "user", "content": parts}]]) == ["<|user|>a\nb<|assistant|>"]


def test_messages_of_a_table_are_those_of_a_text_file(tmp_path: Path) -> None:
    """In a table every message has the keys of all, and so has every record in them."""
    rows: list[dict[str, Any]] = [
        {"prompt": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, TOOL]},
        {"prompt": [USER, {"role": "assistant", "content": "", "tool_calls": [SEARCH]}, USER]},
        {"prompt": [{**USER, "name": "Ann"}]},
    ]  # fmt: skip
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ messages | tojson }}"
    found = []
    for write in (jsonl, parquet):
        source = DataConfig(path=write(tmp_path / f"a.{write.__name__}", rows))
        loaded = load_rows(source, "data", answers=False)
        prompts = render(loaded, source, tokenizer)
        assert [prompt.row for prompt in prompts] == loaded  # as it was
        found.append([json.loads(prompt.text) for prompt in prompts])
    assert found[0] == found[1]
    assert found[0][0][1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert found[0][1][1]["tool_calls"] == [SEARCH]
    assert found[0][2] == [{**USER, "name": "Ann"}]


@pytest.mark.parametrize("setting", ["suffix", "template"])
@pytest.mark.parametrize("last", [ANSWER, TOOL])
def test_what_belongs_into_the_users_turn_is_not_written_into_another(setting: str, last: dict[str, str]) -> None:
    said = refusal([[USER], [USER, last]], **{setting: "{prompt} Think."})
    assert f"x: row 2, column prompt: its last message is of the role {last['role']}, and data.{setting}" in said
    assert f"set data.{setting}=''" in said
    assert asked([[USER, ANSWER]]) == ["<|user|>Hi<|assistant|>Ho<|eos|><|assistant|>"]


def test_a_chat_column_is_named_where_there_is_no_prompt_column(tmp_path: Path) -> None:
    source = DataConfig(path=jsonl(tmp_path / "a.jsonl", [{"id": 1, "conversations": [USER]}]))
    with pytest.raises(
        ValueError, match=r"it has id, conversations; for its chats set data.prompt_column=conversations"
    ):
        load_rows(source, "data", answers=False)


@pytest.mark.parametrize(
    ("problem", "says"),
    [
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "a part of the type image_url"),
        ([{"role": "user", "content": None}], "a message of the role user has no content"),
        ([{"text": "x"}], "neither a text nor a list of messages with role and content"),
        ([{"from": "human", "value": "\ud83d"}], "half of a surrogate pair"),
        ([], "neither a text nor a list of messages"),
        ({"a": 1}, "neither a text nor a list of messages"),
        (["a"], "neither a text nor a list of messages"),
        ([{"role": "user", "content": " "}], "empty"),
    ],
)
def test_what_is_no_chat_is_refused(problem: Any, says: str, tmp_path: Path) -> None:
    source = DataConfig(path=jsonl(tmp_path / "a.jsonl", [{"prompt": problem}]))
    with pytest.raises(DataError, match="row 1, column prompt: ") as caught:
        load_rows(source, "data", answers=False)
    assert says in str(caught.value)


# ---------------------------------------------------------------------------------------------- templates that refuse

NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)
SYSTEM = {"role": "system", "content": "Think."}


@pytest.mark.parametrize(
    ("problem", "settings", "says"),
    [
        ("1+1", {"system": "Think."}, "data.system: the model's chat template refuses a system message (System role"),
        ([USER], {"system": "Think."}, "put the text into data.template, as 'TEXT {prompt}'"),
        ([SYSTEM, USER], {}, "row 1, column prompt: the model's chat template refuses its system message"),
        ([USER, USER], {}, "of the roles user, user (Roles must alternate)"),
    ],
)
def test_a_template_that_refuses_a_chat_says_whose_fault_it_is(
    problem: Any, settings: dict[str, str], says: str
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = NO_SYSTEM
    said = refusal([problem], tokenizer, **settings)
    assert says in said
    assert "mend" not in said


def test_a_template_that_fails_on_a_plain_question_is_at_fault_itself() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert "row 1: the model's chat template fails on a plain question (no)" in refusal(["1+1"], tokenizer)


def test_half_a_character_in_what_stands_around_a_problem() -> None:
    assert "row 1: its prompt is not valid Unicode" in refusal(["1+1"], suffix="\udcff")


# ---------------------------------------------------------------------------------------------- doctor


@pytest.mark.process
def test_the_doctor_sees_chats_that_hold_their_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = jsonl(tmp_path / "a.jsonl", [{"prompt": [USER, ANSWER], "answer": "1"}] * 8)
    settings = [f"data.path={rows}", "data.suffix=' Think.'", f"eval.benchmarks.smoke.path={rows}"]
    assert iwopd("doctor", *SMALL, *settings, "doctor.live=false", "doctor.json=doctor.json") == 1
    report = json.loads((tmp_path / "doctor.json").read_text())
    (data,) = [section["findings"] for section in report["sections"] if section["title"] == "Data"]
    (problem,) = [finding["text"] for finding in data if finding["level"] == "problem"]
    assert "data.suffix belongs into a user's turn" in problem
    (warning,) = [finding["text"] for finding in data if finding["level"] == "warning"]
    assert "8 of 8 prompts end with a message of the assistant's" in warning


def test_the_doctor_sees_prompts_that_are_over() -> None:
    config, tokenizer, section = composed(*SMALL), make_tokenizer(), Section("Data")
    tokenizer.chat_template = "{{ messages[0].content }}<|eos|>"
    prompts.look(config, Source("student", config.student, tokenizer=tokenizer), section)
    warnings = [finding.text for finding in section.findings if finding.level == "warning"]
    assert any("64 of 64 prompts end with the end-of-sequence token '<|eos|>'" in text for text in warnings)
