"""Datasets of the hub: may they be read, and what went wrong if not."""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

from huggingface_hub import constants

from iwopd.config import SourceConfig
from iwopd.data.hub import check_on_hub
from iwopd.data.table import Table
from iwopd.errors import DataError, ModelError, first_line


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
    try:
        check_on_hub(f"{key}.path", source.path, "datasets", source.revision)
        from iwopd.data.hub_tables import load  # `datasets` takes 0.7 s, and fails where nothing can be kept

        return load(source, wanted, only)
    except DataError:
        raise
    except Exception as error:  # datasets raises a dozen types, most of them its own
        unwritable = _unwritable()
        if isinstance(error, ModelError) and not unwritable:
            raise
        raise DataError(f"{key}.path={source.path}: {unwritable or _reason(error)}") from error


def _reason(error: BaseException) -> str:
    reason = first_line(error.__cause__ or error)
    return f"neither a file here nor a dataset the hub gives: {reason}; check path, subset and split"


def _unwritable() -> str | None:
    """A folder where downloads are kept that cannot be written, and why: it causes errors of many kinds."""
    tables = os.environ.get("HF_DATASETS_CACHE", os.path.join(constants.HF_HOME, "datasets"))
    for folder in (Path(constants.HF_HUB_CACHE), Path(tables)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder) as probe:
                probe.write(bytes(4096))
        except OSError as error:
            return (
                f"{folder}, where downloads are kept, cannot be written ({error.strerror}); set HF_HOME to a folder "
                "that can, and has room"
            )
    return None
