"""Local files of problems: what a path names, of which format it is, and the text of compressed files."""

import io
import lzma
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from iwopd.errors import ConfigError, DataError

FORMATS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines"), "jsonl"),
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    ".arrow": "arrow",
}
COMPRESSED = (".gz", ".zst", ".zstd", ".bz2", ".xz")
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}
KNOWN = (
    "use .jsonl, .json, .csv or .parquet (.ndjson, .tsv and .arrow are read too, texts also as .gz, .zst, .bz2 or .xz)"
)
NOT_DATA = {
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
}  # what `datasets` saves beside
SPLIT = re.compile(r"(?<![a-z])(?:(train|training)|(validation|valid|val|dev)|(test|testing|eval|evaluation))(?![a-z])")
SPLITS = ("train", "validation", "test")


def format_of(file: Path) -> str | None:
    """The format that a name promises, such as "jsonl" for a.jsonl.gz; None where it promises none."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
        return found if suffixes and (found := FORMATS.get(suffixes[-1])) in ("jsonl", "json", "csv") else None
    return FORMATS.get(suffixes[-1]) if suffixes else None


def is_local(path: str) -> bool:
    """True for a path on this machine, or what can only be meant as one; else it is a hub name."""
    if len(path) > 200 or path.startswith(("/", ".", "~")) or format_of(Path(path)):
        return True
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return True


def find(path: str, key: str, split: str) -> list[Path]:
    """The files that a path names: itself, or the shards in a folder, in the order of their names.

    Where the names in a folder tell of splits (train-00000.parquet, test/a.jsonl) they are those of `split`.

    Args:
        key: the section of the config, such as "data", for messages.

    Raises:
        ConfigError: there is no such file, it is of no known format, or it is not plain which files of a folder count.
    """
    said = f"{key}.path={path}"
    try:
        file = Path(path).expanduser()
        if file.is_dir():
            return _shards(file, said, key, split)
        exists = file.is_file()
    except ConfigError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: ~nobody
        raise ConfigError(f"{said}: not a path ({getattr(error, 'strerror', None) or error})") from None
    if not exists:
        raise ConfigError(f"{said}: there is no such file; check the path")
    if format_of(file) is None:
        raise ConfigError(f"{said}: not a format known here; {KNOWN}")
    return [file]


def _shards(folder: Path, said: str, key: str, split: str) -> list[Path]:
    found = _data_files(folder.iterdir()) or _data_files(folder.rglob("*"))
    if not found:
        raise ConfigError(f"{said}: a folder without files of data; {KNOWN}")
    named = {file: name for file in found if (name := _split_of(file.relative_to(folder)))}
    if named:
        wanted = _split_of(Path(split)) or split
        found = [file for file in found if named.get(file) == wanted]
        if not found:
            there = ", ".join(name for name in SPLITS if name in named.values())
            raise ConfigError(f"{key}.split={split}: {folder} has files of other splits only: {there}; choose one")
    folders = sorted({str(file.parent.relative_to(folder)) for file in found})
    if len(folders) > 1:
        raise ConfigError(f"{said}: its files lie in several folders: {', '.join(folders)}; name one of them")
    kinds = sorted({str(format_of(file)) for file in found})
    if len(kinds) > 1:
        raise ConfigError(f"{said}: files of several formats: {', '.join(kinds)}; name one file, or keep one format")
    return found


def _data_files(files: Iterable[Path]) -> list[Path]:
    return sorted(
        file
        for file in files
        if format_of(file) and not file.name.startswith((".", "_")) and file.name not in NOT_DATA and file.is_file()
    )


def _split_of(place: Path) -> str | None:
    """The split that a name implies; the file's own counts before its folders'."""
    for part in reversed(place.parts):
        found = SPLIT.search(part.lower())
        if found:
            return SPLITS[next(index for index, word in enumerate(found.groups()) if word)]
    return None


def lines_of(file: Path) -> Iterator[str]:
    """The lines of a text file with their ends, decompressed where its first bytes say that it is compressed, without a
    byte order mark.

    Raises:
        DataError: it cannot be read, is cut short, or is not UTF-8; names the line.
    """
    number = 0
    try:
        with _opened(file) as stream:
            for number, line in enumerate(stream, start=1):
                yield line.removeprefix(b"\xef\xbb\xbf").decode() if number == 1 else line.decode()
    except UnicodeDecodeError as error:
        wide = number == 1 and error.object.startswith((b"\xff\xfe", b"\xfe\xff"))
        reason = "UTF-16, by its first bytes" if wide else error.reason
        raise DataError(f"{file}: line {number}: not UTF-8 ({reason}); convert the file") from None
    except (OSError, EOFError) as error:
        raise DataError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error}); check it") from None


def _opened(file: Path) -> io.BufferedIOBase:
    with file.open("rb") as stream:
        head = stream.read(6)
    packed = next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)
    if packed is None:
        return file.open("rb")
    if packed == "xz":
        return lzma.open(file, "rb")
    import pyarrow  # 0.1 s, which other files do without

    return io.BufferedReader(pyarrow.input_stream(str(file), compression=packed))
