"""Dropping duplicates: the first of equal documents stays, whatever kind of file, split or part the others are in."""

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scaletrain.data.prepare.duplicates import find_duplicates
from scaletrain.data.prepare.options import PrepareOptions
from scaletrain.data.prepare.run import prepare_dataset
from scaletrain.data.prepare.segments import HASHES
from scaletrain.data.shards import Dataset
from tests.data.test_audit import audit
from tests.data.test_prepare import Recorder, content, documents, write_lines


def options_for(output: Path, *inputs: Path, **changes: object) -> PrepareOptions:
    names = tuple(str(path) for path in inputs)
    options = PrepareOptions(names, output, train_tokenizer=300, drop_duplicates=True, workers=1)
    return replace(options, **changes)  # type: ignore[arg-type]


def both(dataset: Dataset) -> tuple[list[str], list[str]]:
    return list(documents(dataset, "train")), list(documents(dataset, "validation"))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Two thousand documents, a third of them repeated, some next to each other and some far apart."""
    rng = random.Random(1)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "in", "Spain", "äöü", "天地"]
    texts: list[str] = []
    for _ in range(2000):
        is_repeated = texts and rng.random() < 0.33
        texts.append(rng.choice(texts[-500:]) if is_repeated else " ".join(rng.choices(words, k=rng.randint(1, 60))))
    return texts


def test_first_of_equal_documents_stays_in_order(texts: list[str], tmp_path: Path) -> None:
    first, second = write_lines(tmp_path / "a.jsonl", texts[:900]), tmp_path / "b.jsonl.gz"
    write_lines(tmp_path / "b.jsonl", texts[900:])
    second.write_bytes(gzip.compress((tmp_path / "b.jsonl").read_bytes()))
    recorder = Recorder()
    options = options_for(tmp_path / "set", first, second, validation=0.2, shard_tokens=3000)
    dataset = prepare_dataset(options, recorder)
    assert audit(dataset.name).faults == ()
    train, validation = both(dataset)
    unique, held_out = list(dict.fromkeys(texts)), set(validation)
    assert train == [text for text in unique if text not in held_out]
    assert validation == [text for text in unique if text in held_out]
    assert len(validation) > 100
    assert recorder.report is not None
    assert (recorder.report.duplicates, recorder.report.documents) == (2000 - len(unique), 2000)
    index = json.loads((dataset.path / "index.json").read_text())
    assert index["options"]["drop_duplicates"] is True
    assert index["options"]["duplicates_dropped"] == 2000 - len(unique)
    assert dataset.bytes("train") == sum(len(text.encode()) for text in train)
    assert recorder.done == recorder.total
    prepare_dataset(replace(options, output=tmp_path / "other", workers=3), Recorder())
    assert content(tmp_path / "other") == content(tmp_path / "set")


def test_split_of_what_stays_is_that_without_dropping(texts: list[str], tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", texts)
    kept = prepare_dataset(options_for(tmp_path / "kept", path, validation=0.2, drop_duplicates=False), Recorder())
    dropped = prepare_dataset(options_for(tmp_path / "dropped", path, validation=0.2), Recorder())
    assert "duplicates_dropped" not in json.loads((kept.path / "index.json").read_text())["options"]
    for all_of_it, unique in zip(both(kept), both(dropped), strict=True):
        assert len(all_of_it) > len(unique)
        assert list(dict.fromkeys(all_of_it)) == unique


def test_few_documents_lose_both_spans_of_a_duplicate(tmp_path: Path) -> None:
    novels = ["".join(f"Chapter {i} of novel {name}.\n" for i in range(300)) for name in "abacabb"]
    path = write_lines(tmp_path / "a.jsonl", novels)
    train, validation = both(prepare_dataset(options_for(tmp_path / "set", path, validation=0.1), Recorder()))
    assert [a + b for a, b in zip(train, validation, strict=True)] == list(dict.fromkeys(novels))


def test_document_read_in_parts_equals_the_same_text_read_at_once(tmp_path: Path) -> None:
    large = "".join(f"line {i} of a text larger than what is read at once\n" for i in range(90_000))
    assert len(large) > 1 << 22
    (tmp_path / "a.txt").write_text(large)
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(large.encode(), 1))
    inputs = [tmp_path / "a.txt", write_lines(tmp_path / "b.jsonl", ["small", large]), tmp_path / "c.txt.gz"]
    options = options_for(tmp_path / "set", *inputs, validation=0.0, tokenizer_sample=100_000)
    assert list(documents(prepare_dataset(options, Recorder()), "train")) == [large, "small"]


@pytest.mark.parametrize("bucket_documents", [1, 100, 10**6])
def test_marks_are_those_of_a_set_of_all_hashes(tmp_path: Path, bucket_documents: int) -> None:
    """Hashes that share one half are others; so few different halves that many rows repeat, many only by half."""
    rng = np.random.default_rng(0)
    segments, counts = tmp_path / "segments", [500, 0, 3, 1500]
    segments.mkdir()
    rows = np.zeros(sum(counts), dtype=HASHES)
    rows["hash"] = rng.choice(rng.integers(0, 2**64, 60, dtype=np.uint64), (len(rows), 2))
    rows["splits"] = rng.choice([1, 2, 3], len(rows))
    seen: set[tuple[int, ...]] = set()
    is_first = [not (key in seen or seen.add(key)) for key in map(tuple, rows["hash"].tolist())]  # type: ignore[func-returns-value]
    first = 0
    for number, count in enumerate(counts):
        (segments / f"{number:08d}.hashes").write_bytes(rows[first : first + count].tobytes())
        first += count
    steps: list[int] = []
    find_duplicates(segments, counts[:1], tmp_path / "work", lambda done: None)  # a former run's work is done anew
    found = find_duplicates(segments, counts, tmp_path / "work", steps.append, bucket_documents)
    assert found.count == is_first.count(False) > 400
    assert sum(steps) == 2 * len(rows)
    assert [file.name for file in (tmp_path / "work").iterdir()] == ["marks"]
    for split, bit in (("train", 1), ("validation", 2)):
        kept = [mask for number in range(len(counts)) for mask in found.kept(number, split)]  # type: ignore[arg-type]
        expected = [stays for stays, splits in zip(is_first, rows["splits"], strict=True) if splits & bit]
        assert np.concatenate(kept).tolist() == expected
