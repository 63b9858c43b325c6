"""Datasets of the hub, by `datasets`: files of text are downloaded and read as local ones are, for the library would
make numbers and dates of text; tables come from it as they are."""

import logging
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

from datasets import DatasetBuilder, ReadInstruction, disable_progress_bars, load_dataset, load_dataset_builder
from datasets.packaged_modules.csv.csv import Csv, CsvConfig
from datasets.packaged_modules.json.json import Json
from huggingface_hub import constants, errors, hf_hub_download, snapshot_download

from iwopd.config import SourceConfig
from iwopd.data import readers
from iwopd.data.files import format_of
from iwopd.data.table import Table

TEXTS = ("csv", "json", "jsonl")
ADDRESS = re.compile(r"hf://datasets/([^@]+)@[^/]+/(.+)")


def load(source: SourceConfig, wanted: Sequence[str], only: bool) -> Table:
    """The rows of a split. See `iwopd.data.hub_datasets.read`."""
    disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # errors are reported in one line
    builder = _builder(source)
    if builder is not None and (data_files := builder.config.data_files) and _is_text(builder):
        return _of_files(data_files, source, wanted)
    table: Any = load_dataset(str(source.path), source.subset, split=source.split, revision=source.revision)
    names = list(table.column_names)
    if only:
        table = table.select_columns([name for name in names if name in wanted])
    return Table(names, iter(table))


def _builder(source: SourceConfig) -> DatasetBuilder | None:
    """What knows the dataset's files; without a network, those that were downloaded before. None where none were."""
    if not constants.HF_HUB_OFFLINE:
        return load_dataset_builder(str(source.path), source.subset, revision=source.revision)
    try:
        folder = snapshot_download(
            str(source.path), repo_type="dataset", revision=source.revision, local_files_only=True
        )
    except errors.LocalEntryNotFoundError:
        return None
    try:
        return load_dataset_builder(folder, source.subset)
    except Exception:  # nothing there but its card: the library may have the tables in a cache of its own
        return None


def _is_text(builder: DatasetBuilder) -> bool:
    """True for csv and json files, unless they need settings that only the library follows."""
    given, usual = cast(Any, builder.config), CsvConfig()
    if not all(format_of(Path(file)) in TEXTS for files in given.data_files.values() for file in files):  # a zip, say
        return False
    if isinstance(builder, Json):
        return given.field is None
    if not isinstance(builder, Csv):
        return False
    return all(getattr(given, name) == getattr(usual, name) for name in ("header", "names", "skiprows", "quotechar"))


def _of_files(addresses: Mapping[str, Sequence[str]], source: SourceConfig, wanted: Sequence[str]) -> Table:
    split = source.split
    by_name = {str(name): list(found) for name, found in addresses.items()}

    def table(name: str) -> Table:
        """All of a split."""
        places = [Path(address) for address in by_name[name]]
        return readers.read(
            [_here(address, source.revision) for address in by_name[name]], wanted, only=False, names=places
        )

    if split in by_name:
        return table(split)
    asked = re.findall("|".join(map(re.escape, by_name)), split)  # train[:100], train+test
    if not asked:
        raise ValueError(f"no split {split}, only {', '.join(by_name)}")
    rows = {name: list(table(name).rows) for name in asked}
    parts = ReadInstruction.from_spec(split).to_absolute({name: len(found) for name, found in rows.items()})
    return Table(None, chain.from_iterable(rows[part.splitname][part.from_ : part.to] for part in parts))


def _here(address: str, revision: str | None) -> Path:
    """A file of a dataset on this machine, downloaded if need be; by the revision's name, by which it is found again
    without a network."""
    found = ADDRESS.fullmatch(address)
    if found is None:
        return Path(address)
    return Path(hf_hub_download(found[1], found[2], repo_type="dataset", revision=revision))
