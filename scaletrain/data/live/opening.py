"""Opens a dataset by what data.path names: a folder, files, a folder of save_to_disk, URLs or a name on the hub."""

import glob
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from scaletrain.config.schema import Data
from scaletrain.data.remote import is_url
from scaletrain.errors import DataError

# Module of the datasets library by file name; each may be compressed.
FORMATS = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".txt": "text",
    ".arrow": "arrow",
}
_COMPRESSED = (".gz", ".zst", ".xz", ".bz2")
_TABLE_ROWS = 512  # of a parquet file in memory at once: by default it is a row group, which may hold gigabytes
_SAVED_SHARDS = 256  # that a folder of save_to_disk is read in
_REASON = 200  # characters of the library's words that an error repeats


@dataclass(frozen=True)
class Source:
    """The splits of an opened dataset, each a datasets.IterableDataset that nothing was read of.

    `prints` tell a split's files from others: their number and a hash of their names, and of their sizes where they are
    on this machine. `revisions` are the commits of a hub dataset.
    """

    name: str
    streams: dict[str, Any]
    prints: dict[str, str]
    revisions: dict[str, str | None]

    def stream(self, split: str, key: str) -> Any:
        """The split that the recipe's `key` names; DataError, with those that exist, when there is none."""
        if split not in self.streams:
            raise DataError(f"{key}={split}: {self.name} has the splits {', '.join(self.streams)}: choose one of them")
        return self.streams[split]


def open_source(data: Data) -> Source:
    """Opens what data.path names; DataError in one line when that fails, a hub out of reach included."""
    import datasets  # here: a second, which no other source needs

    where = str(data.path)
    path = Path(where).expanduser()
    with _silence():
        try:
            if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
                _refuse(where, "a saved dataset", name=data.live.name, revision=data.live.revision)
                return _open_saved(where, datasets.load_from_disk(str(path)), data)
            return _open_builder(where, _builder(where, path, data), data)
        except DataError:
            raise
        except Exception as error:  # of the library, its file systems and the hub: of many kinds
            raise _fault(where, data, error) from error


def split_further(name: str, stream: Any) -> Any:
    """The stream in more shards, as far as its format allows: those of parquet are then row groups, not files."""
    if not hasattr(stream, "reshard"):  # an earlier version of the library
        return stream
    with _silence():
        try:
            return stream.reshard()
        except Exception as error:  # as in open_source
            raise DataError(f"{name} cannot be read ({first_line(error)}): repair or replace its files") from error


def first_line(error: BaseException) -> str:
    """What an error of a library says, fit for one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _REASON else f"{text[:_REASON]} ..."


def _builder(where: str, path: Path, data: Data) -> Any:
    from datasets import load_dataset_builder

    live = data.live
    if is_url(where) or path.is_file() or glob.has_magic(where):
        _refuse(where, "files", name=live.name, revision=live.revision)
        if not is_url(where) and not glob.glob(str(path), recursive=True):  # noqa: PTH207  Path.glob: none from the root
            raise DataError(f"data.path={where} names no file: change the pattern")
        options = {"storage_options": data.storage_options} if data.storage_options else {}
        return load_dataset_builder(
            _format(where), data_files={live.split: str(path if not is_url(where) else where)}, **options
        )
    if path.is_dir():
        _refuse(where, "a folder", revision=live.revision)
        return load_dataset_builder(str(path), live.name)
    if where.count("/") > 1 or where.startswith((".", "/", "~")):
        raise DataError(f"data.path={where} does not exist: name a folder, files or a dataset of the Hugging Face hub")
    return load_dataset_builder(where, live.name, revision=live.revision)


def _refuse(where: str, kind: str, **options: str | None) -> None:
    """DataError for an option that has no effect here."""
    for key, value in options.items():
        if value is not None:
            raise DataError(f"data.live.{key}={value} has no effect, {where} is {kind}: remove it")


def _format(where: str) -> str:
    name = where.partition("?")[0] if is_url(where) else where  # in a pattern it stands for a letter
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    if (found := FORMATS.get(Path(name).suffix)) is None:
        raise DataError(
            f"data.path={where} is of a kind that is not read: give files that end in {', '.join(FORMATS)} "
            f"(or these and {', '.join(_COMPRESSED)})"
        )
    return found


def _open_builder(where: str, builder: Any, data: Data) -> Source:
    # What load_dataset takes as arguments; which of them a dataset knows is only seen when it is open.
    if hasattr(builder.config, "sample_by"):
        builder.config.sample_by = "document"  # as `scaletrain prepare` reads text: a file is a document, not a line
    if hasattr(builder.config, "columns") and hasattr(builder.config, "batch_size"):
        builder.config.batch_size = _TABLE_ROWS
    streams = builder.as_streaming_dataset()
    field = data.live.field
    if hasattr(builder.config, "columns") and all(field in (stream.features or ()) for stream in streams.values()):
        builder.config.columns = [field]
        streams = builder.as_streaming_dataset()
    files = {str(split): [str(file) for file in found] for split, found in (builder.config.data_files or {}).items()}
    return _source(where, streams, files)


def _open_saved(where: str, found: Any, data: Data) -> Source:
    parts = found if isinstance(found, dict) else {data.live.split: found}
    streams = {k: v.to_iterable_dataset(num_shards=max(1, min(_SAVED_SHARDS, len(v)))) for k, v in parts.items()}
    return _source(where, streams, {str(k): [file["filename"] for file in v.cache_files] for k, v in parts.items()})


def _source(where: str, streams: Mapping[Any, Any], files: Mapping[str, list[str]]) -> Source:
    named = {str(split): stream for split, stream in streams.items()}
    return Source(
        where,
        named,
        {split: _print_of(files.get(split, [])) for split in named},
        {split: _revision_of(files.get(split, [])) for split in named},
    )


def _print_of(files: list[str]) -> str:
    lines = []
    for file in files:
        path = Path(file)
        lines.append(f"{path.name} {path.stat().st_size}" if path.is_file() else file)
    return f"{len(lines)} files, {xxhash.xxh3_64_hexdigest(chr(10).join(sorted(lines)).encode())}"


def _revision_of(files: list[str]) -> str | None:
    """The commit that files of the hub are of; their names hold it."""
    found = {match[1] for file in files if (match := re.search(r"^hf://.*@([0-9a-f]{40})/", file))}
    return found.pop() if len(found) == 1 else None


def _fault(where: str, data: Data, error: Exception) -> DataError:
    config = f" with data.live.name={data.live.name}" if data.live.name is not None else ""
    if isinstance(error, StopIteration):  # what the library's JSON reader raises
        return DataError(f"data.path={where} holds no text, or its first file is empty: give it documents")
    if isinstance(error, FileNotFoundError):
        remedy = "check the name, and log in (hf auth login) if it is private"
    elif isinstance(error, OSError):
        remedy = "check the name and the network, unset HF_HUB_OFFLINE, or name a folder or files on this machine"
    else:
        remedy = "check data.path and data.live.name"
    return DataError(f"data.path={where} cannot be opened{config} ({first_line(error)}): {remedy}")


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps the libraries' own lines and bars off the terminal: what matters of them is in the error."""
    import datasets

    datasets.disable_progress_bars()
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
