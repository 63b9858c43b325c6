"""Hydra's compositions, each choice of presets put together once: most commands of the tests differ in values alone.

Hydra merges the files that its defaults list names (0.1 s), and sets the values of the command line afterwards (none).
Both stay Hydra's own. What is kept is the outcome of the first, where only the program's own presets were chosen from;
every command gets a copy, and its own values are set in it.
"""

from copy import deepcopy
from dataclasses import replace

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from iwopd.config.presets import config_folder

_mode = Hydra.get_mode
_choose = config_loader_impl.create_defaults_list
_merge = ConfigLoaderImpl._compose_config_from_defaults_list
_chosen: dict[tuple[object, ...], DefaultsList] = {}
_merged: dict[int, DictConfig] = {}  # by the identity of a kept list


def keep() -> None:
    """From here on, in this process."""
    Hydra.get_mode = _mode_if_given
    ConfigStore.__deepcopy__ = lambda self, memo: self  # of which every composition makes a copy, and only reads it
    config_loader_impl.create_defaults_list = _create_defaults_list
    ConfigLoaderImpl._compose_config_from_defaults_list = _compose_config_from_defaults_list


def _mode_if_given(self: Hydra, config_name: str | None, overrides: list[str]) -> object:
    """Hydra composes everything a first time to learn its mode, which no preset sets: half the time of a command."""
    return _mode(self, config_name, overrides) if any("hydra.mode" in each for each in overrides) else None


def _create_defaults_list(
    repo: IConfigRepository, config_name: str | None, overrides_list: list[Override], **options: bool
) -> DefaultsList:
    sources = tuple((source.provider, source.path) for source in repo.get_sources())
    if any(provider not in ("hydra", "main", "schema") for provider, _ in sources) or (
        ("main", str(config_folder())) not in sources
    ):
        return _choose(repo, config_name, overrides_list, **options)
    values = Overrides(repo, overrides_list).config_overrides
    choices = [each.input_line for each in overrides_list if not any(each is value for value in values)]
    key = (sources, config_name, *choices, *options.items())
    if key not in _chosen:
        _chosen[key] = _choose(repo, config_name, overrides_list, **options)
    return replace(_chosen[key], config_overrides=values)


def _compose_config_from_defaults_list(
    self: ConfigLoaderImpl, defaults: list[ResultDefault], repo: IConfigRepository
) -> DictConfig:
    if not any(defaults is kept.defaults for kept in _chosen.values()):
        return _merge(self, defaults, repo)
    if id(defaults) not in _merged:
        _merged[id(defaults)] = _merge(self, defaults, repo)
    return deepcopy(_merged[id(defaults)])
