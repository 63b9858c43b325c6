"""What a loss, its signal or what is added to it cannot be: one line, before anything loads."""

from pathlib import Path

import pytest
from support.running import SMALL, refused

pytestmark = pytest.mark.cli


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("loss=forward_kl", "loss.signal=sampled"), "loss.kind=forward_kl: needs the teacher's distribution"),
        (("loss.baseline=kl",), "loss.baseline=kl: needs the teacher's distribution, and loss.signal=auto has"),
        (("loss.entropy_gate=0.8",), "loss.entropy_gate=0.8: needs the teacher's distribution"),
        (("loss.signal=topk",), "loss.signal=topk: not a choice; did you mean top_k?"),
        (("loss.signal=top_k", "loss.top_k=0"), "loss.top_k=0: must be at least 1"),
        (("loss=jsd", "loss.signal=top_k", "loss.top_k=100000"), "loss.top_k=100000: the vocabulary of teacher has"),
        (
            ("loss=jsd", "loss.entropy_gate=0.8", "loss.entropy_gate_top_k=100000"),
            "loss.entropy_gate_top_k=100000: the vocabulary of teacher has",
        ),
        (("loss=reverse_kl", "loss.signal=top_k", "loss.tail=drop"), "loss.tail=drop: not a choice"),
        (("loss=reverse_kl", "loss.shape=clip"), "loss.shape=clip: is for the A_t of sampled tokens"),
        (("loss=reverse_kl", "loss.baseline=kl"), "loss.baseline=kl: is for the A_t of sampled tokens"),
        (("loss=jsd", "loss.skew=0.1"), "loss.skew=0.1: loss.kind=jsd has none"),
        (("loss.signal=top_k", "loss.baseline=kl", "loss.exopd_lambda=1.25"), "centres OPD's A_t, not ExOPD's"),
        (("loss=jsd", "loss.signal=top_k", "loss.top_k=1", "loss.tail=renormalize"), "there is nothing to learn"),
        (("loss=jsd", "loss.entropy_gate=0.8", "loss.entropy_gate_top_k=1"), "loss.entropy_gate_top_k=1: must be at"),
        (
            ("loss=reverse_kl", "loss.signal=top_k", "loss.top_k=8", "loss.entropy_gate=0.8"),
            "loss.entropy_gate_top_k=16: the signal has the 8 likeliest tokens only",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_it_is_one_line_with_what_to_do(
    overrides: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, smoke_models: object
) -> None:
    assert says in refused(capsys, "train", *SMALL, *overrides, f"run.dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()
