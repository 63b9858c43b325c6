"""Datasets of the hub. Files of text are downloaded and read as local ones are, for the library would make numbers and
dates of text; tables come from it as they are."""

import errno
import logging
import os
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from iwopd.config import SourceConfig
from iwopd.data import readers
from iwopd.data.readers import Table
from iwopd.errors import DataError
from iwopd.hub import check_on_hub

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT)
ADDRESS = re.compile(r"hf://datasets/([^@]+)@([^/]+)/(.+)")


def read(source: SourceConfig, key: str, wanted: Sequence[str], *, only: bool) -> Table:
    """The rows of a split.

    Args:
        wanted: top-level columns that the config names.
        only: leave other columns out.

    Raises:
        ModelError: the hub does not have it, or does not give it.
        DataError: it cannot be loaded, or not be kept on this machine.
    """
    assert source.path is not None
    check_on_hub(f"{key}.path", source.path, "datasets", source.revision)
    try:
        return _read(source, wanted, only)
    except DataError:
        raise
    except Exception as error:  # datasets raises a dozen types, most of them its own
        raise DataError(f"{key}.path={source.path}: {_reason(error)}") from error


def _read(source: SourceConfig, wanted: Sequence[str], only: bool) -> Table:
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # what goes wrong is told in one line
    builder = _builder(source)
    if builder is not None and _is_text(builder):
        return _of_files(builder.config.data_files, source.split, wanted)
    table: Any = load_dataset(str(source.path), source.subset, split=source.split, revision=source.revision)
    names = list(table.column_names)
    if only:
        table = table.select_columns([name for name in names if name in wanted])
    return Table(names, iter(table))


def _builder(source: SourceConfig) -> Any:
    """What knows the dataset's files; without a network, those that were downloaded before. None where none were."""
    from datasets import load_dataset_builder
    from huggingface_hub import constants, errors, snapshot_download

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


def _is_text(builder: Any) -> bool:
    """True for csv and json files, unless they need settings that only the library follows."""
    from datasets.packaged_modules.csv.csv import Csv, CsvConfig
    from datasets.packaged_modules.json.json import Json

    if isinstance(builder, Json):
        return builder.config.field is None
    if not isinstance(builder, Csv):
        return False
    told, usual = builder.config, CsvConfig()
    return all(getattr(told, name) == getattr(usual, name) for name in ("header", "names", "skiprows", "quotechar"))


def _of_files(addresses: Mapping[str, Sequence[str]], split: str, wanted: Sequence[str]) -> Table:
    from datasets import ReadInstruction

    def table(name: str) -> Table:
        """All of a split."""
        places = [Path(address) for address in addresses[name]]
        return readers.read([_here(address) for address in addresses[name]], wanted, only=False, names=places)

    if split in addresses:
        return table(split)
    asked = [str(name) for name in addresses if name in split]  # train[:100], train+test
    rows = {name: list(table(name).rows) for name in asked}
    parts = ReadInstruction.from_spec(split).to_absolute({name: len(found) for name, found in rows.items()})
    return Table(None, chain.from_iterable(rows[part.splitname][part.from_ : part.to] for part in parts))


def _here(address: str) -> Path:
    """A file of a dataset on this machine, downloaded if need be."""
    from huggingface_hub import hf_hub_download

    found = ADDRESS.fullmatch(address)
    if found is None:
        return Path(address)
    name, revision, file = found.groups()
    return Path(hf_hub_download(name, file, repo_type="dataset", revision=unquote(revision)))


def _reason(error: BaseException) -> str:
    """What went wrong, and what to do: a folder that cannot be written is not a wrong name."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__  # pyright: ignore[reportAssignmentType]
    full = next((each for each in chain if isinstance(each, OSError) and each.errno in UNWRITABLE), None)
    if full is not None:
        from datasets import config

        where = full.filename or config.HF_DATASETS_CACHE
        return (
            f"{os.strerror(full.errno or 0)} at {where}, where downloads are kept; set HF_HOME (or HF_DATASETS_CACHE and "
            "HF_HUB_CACHE) to a folder that can be written and has room"
        )
    first = chain[0].__cause__ or chain[0]
    reason = next(iter(str(first).splitlines()), type(first).__name__)
    return f"neither a file here nor a dataset the hub gives: {reason}; check path, subset and split"
