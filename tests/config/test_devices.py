"""run.device=mps: accepted, and one line where there is no such device; nothing here has one to compute on."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.composing import composed
from support.running import SMALL, iwopd, refused

from iwopd.errors import ConfigError
from iwopd.numerics.precision import widened

HERE = pytest.mark.skipif(torch.backends.mps.is_available(), reason="of machines without Apple's GPUs")


def test_every_model_may_be_on_it() -> None:
    config = composed("run.device=mps", "teacher.device=mps", "+teachers.b={path: x, device: mps}")
    assert (config.run.device, config.teacher.device, config.teachers["b"].device) == ("mps", "mps", "mps")


def test_several_processes_are_refused_on_it() -> None:
    with pytest.raises(ConfigError, match=r"run\.device=mps: several processes .* use parallel=single"):
        composed("parallel=fsdp", "parallel.processes=2", "run.device=mps")


@HERE
@pytest.mark.cli
@pytest.mark.parametrize("key", ["run.device", "teacher.device"])
def test_without_one_it_is_one_line(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "train", *SMALL, f"{key}=mps")
    assert said == f"iwopd: {key}=mps: PyTorch finds no GPU of Apple's here; use {key}=cpu"


@HERE
@pytest.mark.cli
def test_doctor_says_so_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert iwopd("doctor", *SMALL, "run.device=mps", "doctor.live=false") == 1
    assert "run.device=mps: PyTorch finds no GPU of Apple's here" in " ".join(capsys.readouterr().out.split())


class OnApple(torch.Tensor):
    device: Any = SimpleNamespace(type="mps")


def test_sums_are_in_float64_where_there_is_one() -> None:
    assert widened(torch.ones(2)).dtype == torch.float64
    assert widened(torch.ones(2).as_subclass(OnApple)).dtype == torch.float32
