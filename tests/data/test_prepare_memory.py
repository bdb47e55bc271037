"""Memory: a prepare needs no more of it for more input, whether that is one document or millions."""

import gzip
import json
import random
import subprocess
import sysconfig
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from scaletrain.data.prepare.duplicates import find_duplicates
from scaletrain.data.prepare.segments import HASHES
from scaletrain.data.prepare.train_tokenizer import train_byte_bpe
from scaletrain.data.shards import open_dataset
from tests.conftest import run_program
from tests.data.test_prepare import documents

# VmHWM for the program itself: its ru_maxrss would still hold that of the process which forked it, this one.
PROGRAM = (
    "import re, resource, sys; from scaletrain.cli import app; app(sys.argv[1:], standalone_mode=False); "
    "own = int(re.search(r'VmHWM:\\s*([0-9]+)', open('/proc/self/status').read())[1]); "
    "print('peak', own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_byte_bpe([Path(subprocess.__file__).read_text()], 600).save(folder)
    return folder


def peaks(path: Path, output: Path, tokenizer: Path, *options: str) -> tuple[float, float]:
    """MB at most in memory of the program and of its largest worker."""
    command = ["prepare", "--input", str(path), "--output", str(output), "--tokenizer", str(tokenizer), *options]
    done = run_program("-c", PROGRAM, *command, seconds=1000)
    assert done.code == 0, done.err
    own, workers = done.out.split("peak")[1].split()
    return int(own) / 1024, int(workers) / 1024


def write_documents(path: Path, size: int, words: tuple[int, int]) -> Path:
    """JSON lines of `size` bytes: random stretches of real text, of so many words at least and at most."""
    rng, written = random.Random(0), 0
    text = " ".join(file.read_text() for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-d]*.py")))
    vocabulary = text.split()
    with gzip.open(path, "wt", compresslevel=1) if path.suffix == ".gz" else path.open("w") as file:
        while written < size:
            count = rng.randint(*words)
            start = rng.randrange(len(vocabulary) - count)
            written += file.write(json.dumps({"text": " ".join(vocabulary[start : start + count])}) + "\n")
    return path


def test_one_large_document_is_never_in_memory_as_a_whole(tokenizer: Path, tmp_path: Path) -> None:
    """16 MB: its encoding alone would take some 700 MB."""
    path = tmp_path / "large.txt"
    block = Path(subprocess.__file__).read_text()
    path.write_text(block * (16_000_000 // len(block)))
    assert max(peaks(path, tmp_path / "out", tokenizer, "--workers", "1")) < 400
    dataset = open_dataset(tmp_path / "out")
    (train,), (validation,) = documents(dataset, "train"), documents(dataset, "validation")
    assert train + validation == path.read_text()


def test_many_short_documents_take_no_more_memory_than_few(tokenizer: Path, tmp_path: Path) -> None:
    """In one unit, as a compressed file is. A tuple for each of 150,000 documents more would take some 15 MB."""
    found = []
    for size in (1_000_000, 9_000_000):
        path = write_documents(tmp_path / f"{size}.jsonl.gz", size, (1, 4))
        options = ("--workers", "1", "--shard-tokens", "100000", "--drop-duplicates")
        found.append(peaks(path, tmp_path / f"{size}", tokenizer, *options))
        assert open_dataset(tmp_path / f"{size}").documents("train") > size // 250
    (own, worker), (own_of_more, worker_of_more) = found
    assert worker_of_more < worker + 6
    assert own_of_more < own + 35  # all hashes of fewer than a million documents are sorted at once: 25 MB of them here


def test_duplicates_are_found_in_the_memory_of_one_bucket(tmp_path: Path) -> None:
    rng, found = np.random.default_rng(0), []
    for count in (200_000, 1_000_000):
        segments = tmp_path / f"{count}"
        segments.mkdir()
        rows = np.zeros(count, dtype=HASHES)
        rows["hash"] = rng.integers(0, 2**64, (count, 2), dtype=np.uint64)
        rows["hash"][1::4] = rows["hash"][::4]
        (segments / "00000000.hashes").write_bytes(rows.tobytes())
        del rows
        tracemalloc.start()
        duplicates = find_duplicates(segments, [count], segments / "work", lambda done: None, 20_000)
        found.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert duplicates.count == count // 4
    assert found[1] < found[0] * 1.5


@pytest.mark.slow
def test_peak_is_the_same_for_three_times_the_input(tokenizer: Path, tmp_path: Path) -> None:
    found = []
    for size in (100_000_000, 300_000_000):  # with less than 64 MB a unit is smaller than what is encoded at once
        path = write_documents(tmp_path / f"{size}.jsonl", size, (50, 800))
        found.append(peaks(path, tmp_path / f"{size}", tokenizer, "--drop-duplicates", "--shard-tokens", "10000000"))
    (own, worker), (own_of_more, worker_of_more) = found
    assert own_of_more < own + 20
    assert worker_of_more < worker + 10
