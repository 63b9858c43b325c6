"""Schemes and losses are found by name: as presets, as schemas, by key, and in diagnoses."""

import subprocess
import sys

import pytest
from support.composing import REQUIRED, composed
from support.running import refused

from iwopd import numerics
from iwopd.launch import config_folder
from iwopd.losses import LOSSES
from iwopd.losses.base import Loss
from iwopd.losses.reverse_kl import ReverseKl
from iwopd.setting import by_name
from iwopd.weighting import SCHEMES
from iwopd.weighting.iw_signed import IwSigned
from iwopd.weighting.window import Window

pytestmark = pytest.mark.cli


def presets(group: str) -> set[str]:
    return {file.stem for file in (config_folder() / group).glob("*.yaml")}


@pytest.mark.process
def test_every_registered_class_is_what_some_preset_makes() -> None:
    made = {
        type(composed(f"weighting={name}", *REQUIRED.get(("weighting", name), [])).weighting)
        for name in presets("weighting")
    }
    assert made == {*SCHEMES.values()}
    assert {type(composed(f"loss={name}").loss) for name in presets("loss")} == {*LOSSES.values()}
    assert presets("loss") == {*LOSSES}


def test_what_a_diagnosis_compares_are_presets_as_they_are() -> None:
    for kind in SCHEMES.values():
        for name, scheme in kind.presets().items():
            assert composed(f"weighting={name}", *REQUIRED.get(("weighting", name), [])).weighting == scheme


def test_a_name_may_be_set_by_key() -> None:
    config = composed("loss.kind=reverse_kl", "loss.normalize=all", "weighting.scheme=iw_signed", "weighting.gamma=2")
    assert config.loss == ReverseKl(normalize="all")
    assert config.weighting == IwSigned(gamma=2.0)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            "loss.kind=revers_kl",
            "revers_kl: not a choice; did you mean reverse_kl? choose one with loss=NAME",
        ),
        ("weighting.scheme=window", "weighting.scheme=window: this schema computes iw; choose another scheme by"),
        ("weighting.scheme=nothing", "weighting.scheme=nothing: this schema computes iw"),
        ("loss=reverse", "loss=reverse: no such preset; did you mean reverse_kl?"),
        ("loss.weight=3", "loss.weight=3: no such key; loss has kind, normalize"),
    ],
)
def test_a_name_that_nothing_has_is_refused(overrides: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(capsys, "train", overrides)


def test_a_registry_is_by_the_names_that_sections_start_with() -> None:
    assert by_name(Loss, Window) == {"policy_gradient": Loss, "window": Window}


@pytest.mark.process
def test_schemes_and_losses_load_without_torch_and_numerics_with_the_first_formula() -> None:
    code = (
        "import sys; from iwopd import config, numerics; from iwopd.weighting.iw import Iw; Iw().window(0.0)(5)\n"
        "assert 'torch' not in sys.modules; numerics.window_bounds(5, 0.3); assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert all(callable(getattr(numerics, name)) for name in numerics.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        numerics.nothing  # noqa: B018
