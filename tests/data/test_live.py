"""Live text: each document once a pass over all ranks, the same tokens after any stop, and faults in one line."""

import json
import logging
import random
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from scaletrain.config.data_rules import data_problems
from scaletrain.config.schema import Data, Live
from scaletrain.data.live.documents import Cursor, RankDocuments
from scaletrain.data.live.opening import open_source
from scaletrain.data.live.text import LiveText, open_live_text
from scaletrain.data.loader import Loader, Step
from scaletrain.data.order import Share
from scaletrain.data.reader import ArrayTokens
from scaletrain.data.rows import IGNORED, CutRows
from scaletrain.data.tokenizer import load_tokenizer
from scaletrain.errors import DataError
from tests.data.servers import Faults, faulty_server

CONTEXT = 16


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A token a byte, and <|endoftext|>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0, **{letter: i for i, letter in enumerate(alphabet, 1)}}
    backend = Backend(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    backend.save(str(file))
    return str(file)


def document(number: int) -> str:
    """A text that names itself, of a length that the number decides."""
    return f"{number:04d} " + "".join(random.Random(number).choices("abcdé ", k=number * 7 % 40))


def texts_of(shards: int, each: int) -> list[list[str]]:
    return [[document(shard * each + i) for i in range(each)] for shard in range(shards)]


def write_parquet(folder: Path, shards: list[list[str]]) -> None:
    for number, texts in enumerate(shards):
        table = pa.table({"id": list(range(len(texts))), "text": pa.array(texts, pa.string())})
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=7)


def write_jsonl(folder: Path, shards: list[list[str]]) -> None:
    for number, texts in enumerate(shards):
        lines = [json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(texts)]
        (folder / f"part-{number}.jsonl").write_text("".join(lines), encoding="utf-8")


def write_saved(folder: Path, shards: list[list[str]]) -> None:
    datasets.Dataset.from_dict({"text": [text for shard in shards for text in shard]}).save_to_disk(str(folder))


WRITERS = {"parquet": write_parquet, "jsonl": write_jsonl, "save_to_disk": write_saved}


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., Path]:
    """Writes a dataset and returns its folder."""

    def write(kind: str = "parquet", shards: int = 4, each: int = 20) -> Path:
        folder = tmp_path / f"{kind}-{shards}-{each}"
        folder.mkdir()
        WRITERS[kind](folder, texts_of(shards, each))
        return folder

    return write


def recipe(path: Path | str, tokenizer: str, cache: Path, *, live: dict[str, Any] | None = None, **keys: Any) -> Data:
    given = {"path": str(path), "source": "huggingface", "tokenizer": tokenizer, "context_length": CONTEXT, **keys}
    return Data.model_validate({**given, "cache": {"dir": str(cache)}, "live": live or {}})


def steps(text: LiveText, position: dict[str, Any] | None = None, *, start: int = 0, micro: int = 2) -> Iterator[Step]:
    reading = text.reading({}, start)
    return text.steps(reading, Share(text.rank, text.ranks, micro, 2), start=start, position=position, pin=False)


def tokens_of(step: Step) -> list[list[int]]:
    return [
        [*row, int(labels[-1])]
        for b in step.batches
        for row, labels in zip(b["input_ids"].tolist(), b["labels"], strict=True)
    ]


def same(one: Step, other: Step) -> bool:
    return len(one.batches) == len(other.batches) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(one.batches, other.batches, strict=True)
    )


def pass_of(stream: Any, rank: int, ranks: int, epoch: int, seed: int | None = 5) -> list[str]:
    documents = RankDocuments(stream, "text", "it", rank=rank, ranks=ranks, seed=seed, at_once=3)
    return [text for part in documents.read(Cursor(epoch), epochs=epoch + 1) for text in part.texts]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(("shards", "ranks"), [(4, 2), (3, 2), (1, 2), (2, 5)])
def test_all_ranks_together_read_each_document_once_in_every_pass(
    kind: str, shards: int, ranks: int, corpus: Callable[..., Path], tokenizer: str, tmp_path: Path
) -> None:
    path = corpus(kind, shards=shards)
    stream = open_live_text(recipe(path, tokenizer, tmp_path), 1, ranks=ranks).stream
    expected = sorted(text for shard in texts_of(shards, 20) for text in shard)
    for epoch in range(3):
        parts = [pass_of(stream, rank, ranks, epoch) for rank in range(ranks)]
        assert all(parts)
        assert sorted(text for part in parts for text in part) == expected


def test_a_pass_has_an_order_of_its_own_and_the_recipe_can_forbid_that(corpus: Callable[..., Path]) -> None:
    stream = open_source(Data(path=str(corpus(shards=6)))).streams["train"]
    stored = [text for shard in texts_of(6, 20) for text in shard]
    shuffled = [pass_of(stream, 0, 1, epoch) for epoch in range(3)]
    assert len({tuple(order) for order in [stored, *shuffled]}) == 4
    assert [pass_of(stream, 0, 1, epoch, seed=None) for epoch in range(2)] == [stored, stored]


def test_a_rank_has_the_longer_part_in_one_pass_and_not_in_the_next(corpus: Callable[..., Path]) -> None:
    stream = open_source(Data(path=str(corpus(shards=3)))).streams["train"]
    sizes = [[len(pass_of(stream, rank, 2, epoch)) for epoch in range(4)] for rank in range(2)]
    assert sizes == [[40, 20, 40, 20], [20, 40, 20, 40]]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("ranks", [1, 3])
def test_reading_goes_on_at_any_document_as_if_it_had_not_stopped(
    kind: str, ranks: int, corpus: Callable[..., Path]
) -> None:
    stream = open_source(Data(path=str(corpus(kind, shards=2)))).streams["train"]
    documents = RankDocuments(stream, "text", "it", rank=ranks - 1, ranks=ranks, seed=3, at_once=1)
    parts = list(documents.read(Cursor(), epochs=2))
    assert sum(len(part.texts) for part in parts) >= 80 // ranks - 4
    for number, part in enumerate(parts):
        cursor = Cursor(**json.loads(json.dumps(part.after.to_dict())))
        rest = [text for later in documents.read(cursor, epochs=2) for text in later.texts]
        assert rest == [text for later in parts[number + 1 :] for text in later.texts], number


@pytest.mark.parametrize("shuffle_rows", [0, 8, 100])
@pytest.mark.parametrize("mask", [False, True])
def test_steps_after_a_stop_equal_the_uninterrupted_ones(
    shuffle_rows: int, mask: bool, corpus: Callable[..., Path], tokenizer: str, tmp_path: Path
) -> None:
    live = {"shuffle_rows": shuffle_rows}
    data = recipe(corpus("jsonl", shards=3), tokenizer, tmp_path, live=live, document_mask=mask)
    whole = list(islice(steps(open_live_text(data, 1, rank=1, ranks=2)), 60))
    assert Cursor(**(whole[-1].position or {})["cursor"]).epoch >= 2
    for stop in [*range(1, 20), 33, 58]:
        position = json.loads(json.dumps(whole[stop - 1].position))
        resumed = steps(open_live_text(data, 1, rank=1, ranks=2), position, start=stop * 8)
        assert all(same(a, b) for a, b in zip(islice(resumed, 2), whole[stop : stop + 2], strict=True)), stop


def test_rows_are_those_of_the_prepared_format(corpus: Callable[..., Path], tokenizer: str, tmp_path: Path) -> None:
    data = recipe(corpus("jsonl", shards=2), tokenizer, tmp_path, shuffle=False, document_mask=True)
    loaded = load_tokenizer(tokenizer)
    encoded = loaded.encode_batch([text for shard in texts_of(2, 20) for text in shard])
    stream = np.concatenate([np.append(ids, np.uint16(loaded.eos_id)) for ids in encoded])
    ends = np.cumsum([len(ids) + 1 for ids in encoded]).astype(np.uint64)
    rows = CutRows(ArrayTokens(stream, "it", ends), CONTEXT, document_mask=True)
    live = steps(open_live_text(data, 1), micro=1)
    for number in range(0, len(rows) - 2, 2):
        for row, batch in enumerate(next(live).batches):
            expected = rows.fetch(np.array([number + row]))
            assert batch.keys() == expected.keys()
            for name, values in batch.items():
                assert torch.equal(values, expected[name].to(values.dtype)), (number, name)
            assert (batch["labels"] == IGNORED).any() == bool((batch["input_ids"] == loaded.eos_id).any())
            assert batch["documents"].dtype == expected["documents"].dtype


def test_passes_follow_one_another_without_padding_or_loss(
    corpus: Callable[..., Path], tokenizer: str, tmp_path: Path
) -> None:
    data = recipe(corpus("jsonl", shards=1, each=5), tokenizer, tmp_path, shuffle=False)
    rows = [row for step in islice(steps(open_live_text(data, 1)), 20) for row in tokens_of(step)]
    assert all(a[-1] == b[0] for a, b in pairwise(rows))
    loaded = load_tokenizer(tokenizer)
    ids = [token for row in rows for token in row[:-1]]
    read = loaded.decode(ids, skip_special_tokens=False).split("<|endoftext|>")
    expected = [document(i) for i in range(5)] * (len(read) // 5)
    assert read[: len(expected)] == expected
    assert len(expected) > 10


def test_rows_come_in_random_order_each_once(corpus: Callable[..., Path], tokenizer: str, tmp_path: Path) -> None:
    path = corpus("jsonl", shards=1, each=200)
    plain = recipe(path, tokenizer, tmp_path, live={"shuffle_rows": 0})
    drawn = recipe(path, tokenizer, tmp_path, live={"shuffle_rows": 64})
    count = 32 + 64 * 2  # the blocks of 32, 64 and 64 rows
    stored = [row for step in islice(steps(open_live_text(plain, 1)), count // 4) for row in tokens_of(step)]
    mixed = [row for step in islice(steps(open_live_text(drawn, 1)), count // 4) for row in tokens_of(step)]
    assert sorted(mixed) == sorted(stored)
    assert sum(a == b for a, b in zip(mixed, stored, strict=True)) < count / 8
    other = [row for step in islice(steps(open_live_text(drawn, 2)), count // 4) for row in tokens_of(step)]
    assert sorted(other) == sorted(stored)
    assert other != mixed
    unshuffled = recipe(path, tokenizer, tmp_path, shuffle=False)
    kept = [row for step in islice(steps(open_live_text(unshuffled, 1)), count // 4) for row in tokens_of(step)]
    assert kept == stored


def test_two_ranks_train_on_different_rows(corpus: Callable[..., Path], tokenizer: str, tmp_path: Path) -> None:
    data = recipe(corpus(shards=4), tokenizer, tmp_path)
    parts = [next(steps(open_live_text(data, 1, rank=rank, ranks=2))) for rank in range(2)]
    one, other = ({tuple(row) for row in tokens_of(step)} for step in parts)
    assert not one & other
    assert [step.digest for step in parts] == [0, 0]


def test_empty_and_blank_documents_are_left_out_and_counted(tmp_path: Path) -> None:
    texts: list[str | None] = ["one", "", None, " \n", "two"]
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), tmp_path / "a.parquet")
    stream = open_source(Data(path=str(tmp_path))).streams["train"]
    parts = list(RankDocuments(stream, "text", "it").read(Cursor(), epochs=2))
    assert [text for part in parts for text in part.texts] == ["one", "two"] * 2
    assert parts[-1].after.empty == 6


def test_files_patterns_compressed_files_and_text_are_read(tmp_path: Path) -> None:
    import gzip

    write_jsonl(tmp_path, texts_of(2, 3))
    (tmp_path / "b.txt").write_text("a line\nand another\n", encoding="utf-8")
    with gzip.open(tmp_path / "c.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"text": "packed"}\n')

    def read(pattern: str) -> list[str]:
        return pass_of(open_source(Data(path=str(tmp_path / pattern))).streams["train"], 0, 1, 0, seed=None)

    assert read("part-*.jsonl") == [text for shard in texts_of(2, 3) for text in shard]
    assert read("part-?.jsonl") == read("part-*.jsonl")
    assert read("part-1.jsonl") == texts_of(2, 3)[1]
    assert read("c.jsonl.gz") == ["packed"]
    assert [text.split() for text in read("b.txt")] == [["a", "line", "and", "another"]]  # a file is a document


def test_parquet_is_shared_by_row_groups_where_files_are_fewer_than_ranks(
    corpus: Callable[..., Path], tokenizer: str, tmp_path: Path
) -> None:
    path = corpus("parquet", shards=1)
    text = open_live_text(recipe(path, tokenizer, tmp_path), 1, ranks=3)
    assert text.report()["data"]["live"] == {"dataset": str(path), "split": "train", "shards": 3, "shared": False}
    assert len(text.notes()) == 1


def test_a_damaged_file_is_told_when_row_groups_are_shared(
    corpus: Callable[..., Path], tokenizer: str, tmp_path: Path
) -> None:
    path = corpus("parquet", shards=2)
    (path / "part-1.parquet").write_text("no parquet")
    open_live_text(recipe(path, tokenizer, tmp_path), 1)
    with pytest.raises(
        DataError, match=r"parquet-2-20 cannot be read \(.*Parquet magic bytes.*\): repair or replace its files"
    ):
        open_live_text(recipe(path, tokenizer, tmp_path), 1, ranks=3)


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """A folder whose files make a train and a validation split."""
    folder = tmp_path / "splits"
    for name, shards in {"train": texts_of(2, 20), "validation": [[document(900 + i) for i in range(30)]]}.items():
        (folder / name).mkdir(parents=True)
        write_parquet(folder / name, shards)
    return folder


@pytest.mark.parametrize("wanted", [10, 1000])
@pytest.mark.parametrize("mask", [False, True])
def test_validation_is_the_beginning_of_its_split_on_every_rank(
    wanted: int, mask: bool, splits: Path, tokenizer: str, tmp_path: Path
) -> None:
    live = {"validation_split": "validation", "validation_rows": wanted}
    data = recipe(splits, tokenizer, tmp_path, live=live, document_mask=mask)
    loaded, held_out = load_tokenizer(tokenizer), [document(900 + i) for i in range(30)]
    stream = [t for ids in loaded.encode_batch(held_out) for t in [*ids.tolist(), loaded.eos_id]]
    for rank in range(2):
        text = open_live_text(data, 1, rank=rank, ranks=2)
        rows = text.validation_rows()
        assert rows is not None
        assert len(rows) == min(wanted, -(-(len(stream) - 1) // CONTEXT))
        found = rows.fetch(np.arange(3))["input_ids"].flatten().tolist()
        assert found == stream[: 3 * CONTEXT]
        used = stream[: wanted * CONTEXT + 1]
        assert text.tokens("validation") == len(used)
        whole = len(used) == len(stream)
        predicted = len(used) - (used.count(loaded.eos_id) + (not whole) if mask else 1)
        size = sum(len(part.encode()) for part in held_out) if whole else len(used) - used.count(loaded.eos_id)
        assert text.bytes_per_target() == pytest.approx(size / predicted, rel=0.01)  # a byte is a token


def test_without_a_validation_split_there_is_no_evaluation(
    corpus: Callable[..., Path], tokenizer: str, tmp_path: Path
) -> None:
    text = open_live_text(recipe(corpus(), tokenizer, tmp_path), 1)
    assert (text.validation_rows(), text.bytes_per_target(), text.tokens("validation")) == (None, None, 0)
    assert text.tokens("train") is None
    assert text.repeat_limit(text.reading({}, 0).order, 10**9) is None
    text.check_length(10**9)
    assert text.renumbered({}) is text


def test_the_identity_tells_every_change_that_moves_a_token(
    corpus: Callable[..., Path], tokenizer: str, tmp_path: Path
) -> None:
    path = corpus("jsonl")
    data = recipe(path, tokenizer, tmp_path)
    text = open_live_text(data, 1)
    assert json.loads(json.dumps(text.identity())) == open_live_text(data, 1).identity()
    others = [
        open_live_text(data, 1, ranks=2),
        open_live_text(data, 2),
        open_live_text(recipe(path, tokenizer, tmp_path, live={"shuffle_rows": 7}), 1),
        open_live_text(recipe(path, tokenizer, tmp_path, context_length=17), 1),
        open_live_text(recipe(path, tokenizer, tmp_path, document_mask=True), 1),
        open_live_text(recipe(path, tokenizer, tmp_path, shuffle=False), 1),
        open_live_text(recipe(path, str(smaller(tokenizer, tmp_path)), tmp_path), 1),
    ]
    with (path / "part-3.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"text": "more"}\n')
    others.append(open_live_text(data, 1))
    (path / "part-3.jsonl").unlink()
    others.append(open_live_text(data, 1))
    assert len({json.dumps(t.identity()) for t in [text, *others]}) == len(others) + 1


def smaller(tokenizer: str, folder: Path) -> Path:
    content = json.loads(Path(tokenizer).read_text(encoding="utf-8"))
    del content["model"]["vocab"]["é".encode().decode("latin-1")[0]]
    other = folder / "other.json"
    other.write_text(json.dumps(content), encoding="utf-8")
    return other


def test_the_tokenizer_is_kept_in_the_cache_whole(corpus: Callable[..., Path], tokenizer: str, tmp_path: Path) -> None:
    data = recipe(corpus(), tokenizer, tmp_path / "cache")
    folder = open_live_text(data, 1).tokenizer_folder
    assert load_tokenizer(folder).fingerprint == load_tokenizer(tokenizer).fingerprint
    assert open_live_text(data, 1).tokenizer_folder == folder
    assert [p.name for p in folder.parent.iterdir()] == [load_tokenizer(tokenizer).fingerprint]
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file.* cannot be written .*: set data.cache.dir to a folder that can"):
        open_live_text(recipe(data.path or "", tokenizer, tmp_path / "file"), 1)


def test_what_a_person_is_told_depends_on_shards_and_ranks(
    corpus: Callable[..., Path], tokenizer: str, tmp_path: Path
) -> None:
    data = recipe(corpus("jsonl", shards=3), tokenizer, tmp_path)
    notes = {ranks: open_live_text(data, 1, ranks=ranks).notes() for ranks in (1, 2, 3, 5)}
    assert all("number of ranks" in lines[0] and "scaletrain prepare" in lines[0] for lines in notes.values())
    assert notes[1][1:] == notes[3][1:] == []
    assert notes[2][1:] == ["3 shards over 2 ranks: in each pass some ranks read 2, others 1"]
    assert notes[5][1].startswith("3 shards for 5 ranks: every rank reads all of the text and keeps one document in 5")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path.parent


def saved(folder: Path) -> Path:
    write_saved(folder, texts_of(1, 2))
    return folder


GOOD = '{"text": "a b c"}\n'
FAULTS: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "no such folder": (lambda t: t / "nothing", {}, "nothing does not exist: name a folder, files or a dataset"),
    "no such files": (lambda t: t / "*.jsonl", {}, r"\*.jsonl names no file: change the pattern"),
    "other files": (lambda t: write(t / "a.weird", "") / "a.weird", {}, "is of a kind .*: give files that end in"),
    "no files in the folder": (
        lambda t: write(t / "d" / "a.weird", ""),
        {},
        r"d cannot be opened \(No \(supported\) data files found.*\): check the name",
    ),
    "unknown configuration": (
        lambda t: write(t / "d" / "a.jsonl", GOOD),
        {"name": "de"},
        r"d cannot be opened with data.live.name=de \(BuilderConfig 'de' not found. Available: \['default'\]\): check",
    ),
    "configuration of a file": (
        lambda t: write(t / "d" / "a.jsonl", GOOD) / "a.jsonl",
        {"name": "de"},
        "data.live.name=de has no effect, .*a.jsonl is files: remove it",
    ),
    "revision of a folder": (
        lambda t: write(t / "d" / "a.jsonl", GOOD),
        {"revision": "main"},
        "data.live.revision=main has no effect, .*d is a folder: remove it",
    ),
    "configuration of a saved dataset": (
        lambda t: saved(t / "d"),
        {"name": "de"},
        "data.live.name=de has no effect, .*d is a saved dataset: remove it",
    ),
    "unknown split": (
        lambda t: write(t / "d" / "a.jsonl", GOOD),
        {"split": "test"},
        "data.live.split=test: .*d has the splits train: choose one of them",
    ),
    "unknown validation split": (
        lambda t: write(t / "d" / "a.jsonl", GOOD),
        {"validation_split": "dev"},
        "data.live.validation_split=dev: .*d has the splits train: choose one",
    ),
    "missing field": (
        lambda t: write(t / "d" / "a.jsonl", '{"body": "a", "id": 1}\n'),
        {},
        r"document 0 of .*d \(shard 0 of 1\) has no field 'text', its fields are body, id: choose one with data.live.f",
    ),
    "field that is no text": (
        lambda t: write(t / "d" / "a.jsonl", '{"text": ["a", "b"]}\n'),
        {},
        r"document 0 of .*d \(shard 0 of 1\): field 'text' is a list, no text: choose another with data.live.field",
    ),
    "empty dataset": (
        lambda t: write(t / "d" / "a.jsonl", ""),
        {},
        "d holds no text, or its first file is empty: give",
    ),
    "blank texts only": (lambda t: write(t / "d" / "a.jsonl", '{"text": " "}\n' * 9000), {}, "d holds no text"),
    "a file of another kind than its name": (
        lambda t: write(t / "d" / "a.parquet", "no parquet"),
        {},
        r"d cannot be opened \(Parquet magic bytes not found.*\): check data.path and data.live.name",
    ),
    "unreachable server": (
        lambda t: "http://127.0.0.1:9/a.jsonl",
        {},
        r"127.0.0.1:9/a.jsonl cannot be opened \(.*\): check the name",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_dataset_that_cannot_be_read_is_told_in_one_line(
    case: str, tokenizer: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, live, message = FAULTS[case]
    path = make(tmp_path)
    with pytest.raises(DataError, match=message) as raised:
        text = open_live_text(recipe(path, tokenizer, tmp_path, live=live), 1)
        list(islice(steps(text), 1))
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_breaks_off_ends_the_steps_with_a_remedy(tokenizer: str, tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": "x" * 20_000}) + "\n" for _ in range(600))  # more than is read at once
    folder = write(tmp_path / "d" / "a.jsonl", lines + '{"text": bro')
    text = open_live_text(recipe(folder, tokenizer, tmp_path, context_length=10_000, shuffle=False), 1)
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    loader = Loader(steps(text), 2)
    with pytest.raises(DataError, match=r"shard 0 of 1\) cannot be read on after [\d,]+ documents \(JSON.*\): repair"):
        for _ in range(10**6):
            next(loader)
    loader.close()


def test_a_rank_without_documents_is_told(tokenizer: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "d" / "a.jsonl", GOOD * 2)
    text = open_live_text(recipe(folder, tokenizer, tmp_path), 1, rank=2, ranks=3)
    with pytest.raises(DataError, match=r"d holds no text for rank 2 of 3: give it documents, or start fewer ranks"):
        next(steps(text))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own retries take two minutes."""
    monkeypatch.setattr(datasets.config, "STREAMING_READ_MAX_RETRIES", 1)
    monkeypatch.setattr(datasets.config, "STREAMING_READ_RETRY_INTERVAL", 0)


def test_a_connection_that_breaks_is_made_again(impatient: None, tmp_path: Path) -> None:
    texts = [f"{i:05d} " + "x" * 20_000 for i in range(1500)]  # 30 MB: the library asks for 15 at once
    write_jsonl(tmp_path, [texts])
    with faulty_server(tmp_path) as server:
        stream = open_source(Data(path=f"{server.url}/part-0.jsonl")).streams["train"]
        documents = RankDocuments(stream, "text", "it", waits=(0.0, 0.0, 0.0), at_once=8)
        reading = documents.read(Cursor(), epochs=1)
        found = next(reading).texts
        server.faults = Faults(name=".jsonl", cuts=2, cut_after=3)
        found += [text for part in reading for text in part.texts]
        assert found == texts
        assert server.faults.cuts == 0
        server.faults = Faults(name=".jsonl", cuts=100, cut_after=3)
        with pytest.raises(DataError, match=r"cannot be read on after .*: check the network and run the same command"):
            list(documents.read(Cursor(), epochs=1))


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_a_hub_out_of_reach_is_one_line_with_what_to_do(variable: str, tmp_path: Path) -> None:
    from tests.conftest import run_program

    program = (
        "from scaletrain.config.schema import Data; from scaletrain.data.live.opening import open_source\n"
        "open_source(Data(path='nobody/no-such-dataset'))"
    )
    done = run_program("-c", program, **{variable: "1", "HF_HOME": str(tmp_path)})
    last = done.err.strip().splitlines()[-1]
    assert done.code == 1
    assert last.startswith(
        "scaletrain.errors.DataError: data.path=nobody/no-such-dataset cannot be opened (Couldn't reach"
    )
    assert last.endswith(
        "check the name and the network, unset HF_HUB_OFFLINE, or name a folder or files on this machine"
    )


def test_options_of_other_sources_are_refused() -> None:
    data = Data(path="x", source="huggingface", tokenizer="y", packing="best_fit", max_epochs=2)
    assert [problem.partition(" does not")[0] for problem in data_problems(data)] == [
        "data.max_epochs",
        "data.packing=best_fit",
    ]
    assert "data.tokenizer is not set" in data_problems(Data(path="x", source="huggingface"))[0]
    other = replace_live(Data(path="x"), Live(split="test"))
    assert "data.live is read with data.source=huggingface only" in data_problems(other)[0]


def replace_live(data: Data, live: Live) -> Data:
    return data.model_copy(update={"live": live})
