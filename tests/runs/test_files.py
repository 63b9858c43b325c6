"""Readers of a run's files bear what a crash leaves of them."""

import logging
from pathlib import Path

import pytest

from iwopd.ablate.curves import read_curve
from iwopd.runs.files import read_rows


@pytest.mark.parametrize("tail", ['{"text": "é'.encode()[:-1], b'{"step": 3', b"\0\0", b"[1]", b""])
def test_a_torn_tail_is_left_out(tail: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = b'{"step": 0, "eval/accuracy": 0.25}\n{"step": 1, "tokens/generated": 7}\n'
    (tmp_path / "metrics.jsonl").write_bytes(rows + tail)
    with caplog.at_level(logging.WARNING):
        assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [0, 1]
    assert not caplog.records
    curve = read_curve(tmp_path)
    assert (curve.accuracies, curve.steps) == ([0.25], 1)


def test_damage_before_the_tail_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"step": 0}\n\xff\xfe\n\n{"step": 2}\n')
    with caplog.at_level(logging.WARNING):
        assert [row["step"] for row in read_rows(tmp_path / "a.jsonl")] == [0, 2]
    assert "1 damaged lines are left out" in caplog.text
    assert read_rows(tmp_path / "none.jsonl") == []
