"""What a machine computes once and keeps in its cache: where that is, and who makes it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scaletrain.config.schema import Data
from scaletrain.data.tokenizer import Tokenizer
from scaletrain.errors import DataError
from scaletrain.runtime.files import TEMPORARY, cache_root
from scaletrain.runtime.locks import locked


def cache_folder(data: Data) -> Path:
    """Where this machine keeps what it fetched or computed from datasets."""
    if data.cache.dir is not None:
        return Path(data.cache.dir).expanduser()
    return cache_root()


@contextmanager
def writing_cache(cache: Path) -> Iterator[None]:
    """Turns a cache that cannot be written into one DataError line."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"the cache {cache} cannot be written ({error.strerror}): free some space, or set data.cache.dir to "
            "another folder"
        ) from error


@contextmanager
def making(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """True where this process may make `path`, if it is still missing; no other process of the machine does meanwhile.

    False, only if it is not to `wait`, where another process is at it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_suffix(".lock")
    with locked(lock, block=wait) as handle:
        yield handle is not None
        if handle is not None:
            lock.unlink()


def keep_tokenizer(tokenizer: Tokenizer, cache: Path) -> Path:
    """The folder that holds this tokenizer, saved once for a machine, whole or not at all."""
    folder = cache / "tokenizers" / tokenizer.fingerprint
    if folder.is_dir():
        return folder
    with making(folder):
        if not folder.is_dir():
            unfinished = folder.with_name(folder.name + TEMPORARY)
            shutil.rmtree(unfinished, ignore_errors=True)
            tokenizer.save(unfinished)
            unfinished.rename(folder)
    return folder
