"""Names that become files: one rule for all of them."""

from pathlib import Path

import pytest
from support.running import SMALL, refused

from iwopd.config.names import checkpoint_name, checkpoint_step, name_problem

pytestmark = pytest.mark.cli

BAD = [
    *("", ".", "..", "../../escaped", "a/b", "/abs", "a\\b", ".hidden", "-rf", "x\ny", "x\0y", "\x1b[31m", "a ", "a."),
    *("a|b", "<b>", "$HOME", "a;b", "x" * 129, "数" * 43, "a\u202eb", "\udc80"),
]


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_a_file_is_refused(name: str) -> None:
    assert "becomes a folder or a file" in str(name_problem(name))


@pytest.mark.parametrize("name", ["aime24", "gsm8k-test", "con", "_x", "é :100: [red]数", "iw+gamma=0.5", "x" * 128])
def test_what_can_is_a_file(name: str, tmp_path: Path) -> None:
    assert name_problem(name) is None
    (tmp_path / f".draft-iwopd-{name}.jsonl.zst").write_text("")


def test_checkpoint_names_are_exact() -> None:
    for step in (0, 7, 999_999, 1_000_000, 12_345_678):
        assert checkpoint_step(checkpoint_name(step)) == step
    for name in ("step-best", "step-7", "step-0000007", "step-000007.bak", "step--00001", "step-٠٠٠٠٠٧", "step-", "a"):
        assert checkpoint_step(name) is None


@pytest.mark.parametrize(
    ("verb", "override", "says"),
    [
        ("train", "+eval.benchmarks={../../escaped:{path:'toy://smoke'}}", "eval.benchmarks.../../escaped: its name"),
        ("eval", "+eval.benchmarks={a/b:{path:'toy://smoke'}}", "eval.benchmarks.a/b: its name becomes a folder"),
        ("diagnose", "+eval.benchmarks={.hidden:{path:'toy://smoke'}}", "eval.benchmarks..hidden: its name becomes"),
        ("train", "run.name=../../escaped", "run.name=../../escaped: its name becomes a folder"),
        ("train", "run.name='a\nb'", "run.name=a\\nb: its name becomes a folder"),
        ("ablate", "ablate.arms=[uniform,{name: 'a|b', weighting: iw}]", "its name becomes a folder"),
    ],
)
def test_every_verb_refuses_them_in_one_line(
    verb: str,
    override: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ["eval.model=toy://smoke/student"] if verb == "eval" else []
    assert says in refused(capsys, verb, *SMALL, override, *model)
    assert list(tmp_path.iterdir()) == []
