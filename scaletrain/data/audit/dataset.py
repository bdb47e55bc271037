"""A whole dataset against its index: every shard, the totals, the fingerprint, the tokenizer, and stray files."""

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaletrain.config.schema import Data
from scaletrain.data.audit.fault import Fault
from scaletrain.data.audit.shard import ShardFindings, audit_shard
from scaletrain.data.opening import check_given, open_data
from scaletrain.data.remote import is_url
from scaletrain.data.remote_dataset import RemoteFiles
from scaletrain.data.shards import (
    DOCS_DTYPE,
    DTYPES,
    INDEX,
    SPLITS,
    Dataset,
    LocalFiles,
    Shard,
    Split,
    TokenizerInfo,
    dataset_fingerprint,
    local_dataset,
    read_index,
)
from scaletrain.data.tokenizer import load_tokenizer
from scaletrain.errors import DataError

_PLAN = "prepare.json"  # what prepare was asked for: it leaves it beside the index


@dataclass(frozen=True)
class Opened:
    """A dataset about to be audited. `totals`: what its index says in sum; None where it has no index."""

    dataset: Dataset
    totals: Any
    faults: tuple[Fault, ...]

    @property
    def bytes(self) -> int:
        """Of all tokens and document ends, which the audit reads."""
        size = DTYPES[self.dataset.dtype].itemsize
        return sum(shard.tokens * size + shard.documents * DOCS_DTYPE.itemsize for shard in self.shards)

    @property
    def shards(self) -> list[Shard]:
        return [shard for split in SPLITS for shard in self.dataset.shards(split)]


@dataclass(frozen=True)
class DatasetReport:
    """What was read, and all that is wrong; notes are what a person may want to know and no fault."""

    tokens: int
    documents: int
    files: int
    bytes: int
    seconds: float
    faults: tuple[Fault, ...]
    notes: tuple[Fault, ...]


def open_to_audit(where: str, data: Data) -> Opened:
    """Opens `where` without asking that its shards be whole; DataError when there is no index that can be read."""
    path = Path(where).expanduser()
    if is_url(where) or not (path / INDEX).is_file():
        dataset = open_data(where, data)
        check_given(data, [dataset])
        remote = dataset.files.folder if isinstance(dataset.files, RemoteFiles) else None
        return Opened(dataset, _totals(remote.read(INDEX)) if remote else None, ())
    text, faults = (path / INDEX).read_bytes(), []
    try:
        content = read_index(text, str(path / INDEX))
    except DataError:
        said, own = _fingerprints(text)
        if own is None:  # not only the fingerprint is wrong: nothing to go on with
            raise
        faults.append(Fault(INDEX, "the fingerprint of its content", said, own))
        content = read_index(json.dumps({**json.loads(text), "fingerprint": own}).encode(), str(path / INDEX))
    dataset = local_dataset(path, *content)
    check_given(data, [dataset])
    return Opened(dataset, _totals(text), tuple(faults))


def _totals(index: bytes) -> Any:
    return json.loads(index).get("totals", {})


def audit_dataset(opened: Opened, advance: Callable[[int], None], workers: int) -> DatasetReport:
    """Reads everything, `workers` shards at a time; `advance` hears of the bytes done."""
    began, dataset, shards = time.perf_counter(), opened.dataset, opened.shards
    with ThreadPoolExecutor(workers) as pool:  # reading, hashing and numpy leave the interpreter free
        findings = list(pool.map(lambda shard: audit_shard(dataset, shard, advance), shards))
    faults = [*opened.faults, *(fault for found in findings for fault in found.faults)]
    faults += _wrong_totals(opened, dict(zip(shards, findings, strict=True)))
    faults += _wrong_tokenizer(dataset)
    notes = [*(note for found in findings for note in found.notes), *_stray_files(dataset)]
    return DatasetReport(
        tokens=sum(found.tokens or 0 for found in findings),
        documents=sum(found.documents or 0 for found in findings),
        files=sum(1 + bool(shard.docs_file) for shard in shards),
        bytes=opened.bytes,
        seconds=time.perf_counter() - began,
        faults=tuple(faults),
        notes=tuple(notes),
    )


def _fingerprints(text: bytes) -> tuple[str, str | None]:
    """The fingerprint that an index says, and that of its content; None where it has none."""
    try:
        index = json.loads(text)
        train, validation = (tuple(Shard(**shard) for shard in index[split]) for split in SPLITS)
        own = dataset_fingerprint(index["dtype"], TokenizerInfo(**index["tokenizer"]), train, validation)
        said = str(index["fingerprint"])
        return (said, own) if said != own else (said, None)
    except (ValueError, KeyError, TypeError):
        return "", None


def _wrong_totals(opened: Opened, findings: Mapping[Shard, ShardFindings]) -> list[Fault]:
    """The sums in the index against what was counted; a shard that is not whole counts as the index says."""
    if opened.totals is None:
        return []
    faults = []
    for split in SPLITS:
        for name in ("tokens", "documents", "bytes"):
            total = sum(_count(shard, findings[shard], name) for shard in opened.dataset.shards(split))
            said = _said_total(opened.totals, split, name)
            if said != total:
                faults.append(Fault(INDEX, f"the total {name} of {split}", str(total), str(said)))
    return faults


def _count(shard: Shard, found: ShardFindings, name: str) -> int:
    said: int = getattr(shard, name)
    counted: int | None = getattr(found, name, None)  # of the text's bytes there is no other count
    return said if counted is None else counted


def _said_total(totals: Any, split: Split, name: str) -> Any:
    try:
        return totals[split][name]
    except (KeyError, TypeError):
        return "none"


def _wrong_tokenizer(dataset: Dataset) -> list[Fault]:
    """The tokenizer's files against what the index says of them."""
    if not dataset.tokenizer_folder.is_dir():
        return [Fault("tokenizer", "the folder is missing", "a tokenizer", "no folder")]
    try:
        found = load_tokenizer(dataset.tokenizer_folder).info
    except DataError as error:
        return [Fault("tokenizer", str(error))]
    names = ("fingerprint", "vocab_size", "eos_id")
    pairs = [(name, getattr(dataset.tokenizer, name), getattr(found, name)) for name in names]
    return [Fault("tokenizer", name, str(said), str(own)) for name, said, own in pairs if said != own]


def _stray_files(dataset: Dataset) -> list[Fault]:
    """Files in the folder that the index does not know; `scaletrain prepare` leaves none."""
    if not isinstance(dataset.files, LocalFiles):
        return []
    folder = dataset.files.folder
    known = {Path(INDEX), Path(_PLAN)}
    for split in SPLITS:
        known |= {Path(name) for shard in dataset.shards(split) for name in (shard.file, shard.docs_file)}
    strange = {path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()} - known
    return [Fault(str(p), "the index does not list this file") for p in sorted(strange) if p.parts[0] != "tokenizer"]
