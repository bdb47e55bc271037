"""A dataset wherever it is: a prepared folder, its URL, or the token files of another tool."""

from collections.abc import Sequence
from pathlib import Path

from scaletrain.config.schema import Data
from scaletrain.data.cache_folder import cache_folder
from scaletrain.data.remote import is_url, open_remote
from scaletrain.data.remote_dataset import RemoteFiles, open_remote_dataset
from scaletrain.data.shards import INDEX, Dataset, LocalFiles, open_dataset
from scaletrain.errors import DataError


def open_data(where: str, data: Data) -> Dataset:
    """Opens `where` as the options of `data` say; DataError in one line when it is not whole."""
    if is_url(where):
        limit = None if data.cache.max_gb is None else int(data.cache.max_gb * 1e9)
        folder = open_remote(where, cache_folder(data), limit, data.storage_options)
        return open_remote_dataset(folder, documents=reads_documents(data))
    path = Path(where).expanduser()
    if not (path / INDEX).is_file():
        from scaletrain.data.foreign.opening import is_foreign, open_foreign

        if is_foreign(path):
            return open_foreign(path, tokenizer=data.tokenizer, dtype=data.dtype, cache=cache_folder(data))
    return open_dataset(path)


def check_given(data: Data, datasets: Sequence[Dataset]) -> None:
    """DataError when the recipe says of which tokenizer or type the tokens are, and every dataset says so itself."""
    if all(isinstance(dataset.files, LocalFiles | RemoteFiles) for dataset in datasets):
        for key, value in (("tokenizer", data.tokenizer), ("dtype", data.dtype)):
            if value is not None:
                names = ", ".join(dataset.name for dataset in datasets)
                raise DataError(f"data.{key}={value} has no effect: {names} carries its own {key}; remove data.{key}")


def reads_documents(data: Data) -> bool:
    """Whether a run reads where documents end."""
    return data.document_mask or data.packing == "best_fit"
