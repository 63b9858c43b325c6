"""Hydra's compositions, each choice of presets put together once: most commands of the tests differ in values alone.

Hydra reads and merges the files that its defaults list names (0.1 s), and sets the values of the command line
afterwards (none). Both stay Hydra's own. What is kept is what came of the first, where only the program's own presets
were chosen from; every command gets a copy, and its own values are set in it.
"""

import pickle
from dataclasses import replace

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig

from iwopd.config.presets import config_folder

_mode = Hydra.get_mode
_read = ConfigRepository.load_config
_choose = config_loader_impl.create_defaults_list
_merge = ConfigLoaderImpl._compose_config_from_defaults_list
_files: dict[object, bytes] = {}  # pickled: a copy of that is made in less time than by deepcopy
_chosen: dict[object, DefaultsList] = {}
_merged: dict[int, bytes] = {}  # likewise, by the identity of a kept list


def keep() -> None:
    """From here on, in this process."""
    Hydra.get_mode = _mode_if_given
    ConfigStore.__deepcopy__ = lambda self, memo: self  # of which every composition makes a copy, and only reads it
    ConfigRepository.load_config = _load_config
    config_loader_impl.create_defaults_list = _create_defaults_list
    ConfigLoaderImpl._compose_config_from_defaults_list = _compose_config_from_defaults_list


def _mode_if_given(self: Hydra, config_name: str | None, overrides: list[str]) -> object:
    """Hydra composes everything a first time to learn its mode, which no preset sets: half the time of a command."""
    return _mode(self, config_name, overrides) if any("hydra.mode" in each for each in overrides) else None


def _sources(repo: IConfigRepository) -> tuple[tuple[str, str], ...] | None:
    """Where files are read from; None where that is not the program's own folder alone."""
    found = tuple((source.provider, source.path) for source in repo.get_sources())
    own = ("main", f"{config_folder()}") in found and {provider for provider, _ in found} <= {"hydra", "main", "schema"}
    return found if own else None


def _load_config(self: ConfigRepository, config_path: str) -> ConfigResult | None:
    sources = _sources(self)
    if sources is None:
        return _read(self, config_path)
    if (sources, config_path) not in _files:
        _files[sources, config_path] = pickle.dumps(_read(self, config_path))
    return pickle.loads(_files[sources, config_path])


def _create_defaults_list(
    repo: IConfigRepository, config_name: str | None, overrides_list: list[Override], **options: bool
) -> DefaultsList:
    sources = _sources(repo)
    if sources is None:
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
        _merged[id(defaults)] = pickle.dumps(_merge(self, defaults, repo))
    return pickle.loads(_merged[id(defaults)])
