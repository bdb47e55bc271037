"""Whether a cache of bounded size holds what a run reads of its remote sources at a time."""

from collections.abc import Sequence

from scaletrain.config.schema import Data
from scaletrain.data.opening import reads_documents
from scaletrain.data.shards import DOCS_DTYPE, DTYPES, Dataset, Split, npy_bytes
from scaletrain.errors import DataError


def check_cache(datasets: Sequence[Dataset], data: Data) -> None:
    """DataError where the order of the run, or an evaluation, needs more at a time than data.cache.max_gb."""
    limit = data.cache.max_gb
    remote = [dataset for dataset in datasets if dataset.files.is_remote]
    if limit is None or not remote:
        return
    window = data.shuffle_window_shards if data.shuffle else 1
    need = sum(_need(_sizes(dataset, "train", data), window) for dataset in remote) / 1e9
    if window is None and need > limit:
        raise DataError(
            f"data.cache.max_gb={limit:g} is less than the {need:.3g} GB of {', '.join(d.name for d in remote)}, and a "
            "full shuffle reads all of it at once: set data.shuffle_window_shards, or raise data.cache.max_gb"
        )
    if need > limit:
        raise DataError(
            f"data.cache.max_gb={limit:g} does not hold the {need:.3g} GB that two windows of "
            f"data.shuffle_window_shards={window} shards of each remote source take: raise it"
            + (", or lower data.shuffle_window_shards" if data.shuffle else "")
        )
    for dataset in remote:
        largest = max(_sizes(dataset, "validation", data), default=0) / 1e9
        if largest > limit:
            raise DataError(
                f"data.cache.max_gb={limit:g} does not hold the largest validation shard of {dataset.name} "
                f"({largest:.3g} GB): raise it"
            )


def _need(sizes: Sequence[int], window: int | None) -> int:
    """Bytes of the window that is read and of the one that is fetched, as far as there are so many shards."""
    whole = sum(sizes)
    return whole if window is None else min(whole, 2 * window * max(sizes, default=0))


def _sizes(dataset: Dataset, split: Split, data: Data) -> list[int]:
    """Bytes of each shard, its document ends counted where they are read."""
    tokens = [npy_bytes(DTYPES[dataset.dtype], shard.tokens) for shard in dataset.shards(split)]
    if not reads_documents(data):
        return tokens
    documents = [npy_bytes(DOCS_DTYPE, shard.documents) for shard in dataset.shards(split)]
    return [sum(pair) for pair in zip(tokens, documents, strict=True)]
