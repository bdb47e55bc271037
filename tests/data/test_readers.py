"""Readers: each kind of input gives its documents, however it is cut, and names what is amiss by file and line."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from scaletrain.data.prepare.inputs import find_sources, kind_of
from scaletrain.data.prepare.readers import cut_units, read_documents
from scaletrain.data.prepare.splitting import PART, SplitRule, encode_parts, split_document
from scaletrain.data.prepare.text_readers import MAX_DOCUMENT
from scaletrain.data.prepare.units import Document, Findings, Reading
from scaletrain.errors import DataError

POEM = "Zwölf Boxkämpfer\njagen Viktor\n\nquer über\nden Sylter Deich 🙂\n\n\n\nlast"


def read(paths: list[Path], reading: Reading | None = None, unit_bytes: int | None = None, **find: Any) -> list[str]:
    return read_with_findings(paths, reading or Reading(), unit_bytes, **find)[0]


def read_with_findings(
    paths: list[Path], reading: Reading, unit_bytes: int | None = None, **find: Any
) -> tuple[list[str], Findings]:
    sources = find_sources([str(path) for path in paths], find.get("pattern"), find.get("kind"), reading)
    findings = Findings()
    units = cut_units(sources, reading, unit_bytes)
    return ["".join(doc.parts) for unit in units for doc in read_documents(unit, reading, findings)], findings


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(texts)))
    return path


@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder with a.txt and a folder `shut` that this process, root or not, may not read."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    (folder / "shut").mkdir(mode=0)
    (folder / "a.txt").write_text("text")
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)  # nobody
    yield folder
    if is_root:
        os.seteuid(0)
    (folder / "shut").chmod(0o700)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [("", None), ("", "**/*.txt"), ("", "*/*.txt"), ("/**/*.txt", None), ("/s*/*.txt", None), ("/shut", "*")],
)
def test_a_folder_that_cannot_be_read_is_named_not_left_out(closed: Path, text: str, pattern: str | None) -> None:
    with pytest.raises(DataError, match=r"input \S*/shut\S* cannot be read \(Permission denied\): make it readable"):
        find_sources([f"{closed}{text}"], pattern, None, Reading())


@pytest.mark.parametrize(("text", "pattern"), [("", "*.txt"), ("/*.txt", None), ("/a*", None), ("/a.txt", None)])
def test_a_folder_that_a_glob_does_not_look_into_may_be_shut(closed: Path, text: str, pattern: str | None) -> None:
    assert [source.name for source in find_sources([f"{closed}{text}"], pattern, None, Reading())] == [
        str(closed / "a.txt")
    ]


def test_text_file_is_one_document_unless_a_separator_is_given(tmp_path: Path) -> None:
    file = tmp_path / "poem.txt"
    file.write_text(POEM, encoding="utf-8")
    assert read([file]) == [POEM]
    documents, findings = read_with_findings([file], Reading(separator="\n\n"))
    assert documents == ["Zwölf Boxkämpfer\njagen Viktor", "quer über\nden Sylter Deich 🙂", "last"]
    assert findings.empty_documents == 1


@pytest.mark.parametrize("unit_bytes", [1, 2, 7, 40, 10**6])
def test_documents_do_not_depend_on_the_cut(tmp_path: Path, unit_bytes: int) -> None:
    text = tmp_path / "poem.txt"
    text.write_text(POEM * 3, encoding="utf-8")
    lines = write_jsonl(tmp_path / "lines.jsonl", [f"{POEM} {i}" for i in range(9)])
    paths = [text, lines]
    reading = Reading(separator="\n\n")
    assert read(paths, reading, unit_bytes) == read(paths, reading, 10**9)


def test_large_text_file_is_read_in_blocks(tmp_path: Path) -> None:
    file = tmp_path / "large.txt"
    text = "é" * 5_000_000 + "\nline 🙂\n" * 400_000  # a line longer than a block, then many
    file.write_text(text, encoding="utf-8")
    assert read([file]) == [text]
    with gzip.open(tmp_path / "large.txt.gz", "wb", compresslevel=1) as packed:
        packed.write(text.encode())
    assert read([tmp_path / "large.txt.gz"]) == [text]


def test_large_compressed_file_is_split_as_the_plain_one_without_being_held(tmp_path: Path) -> None:
    text = "".join(f"line {i} of a novel, ä\n" for i in range(250_000))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode(), 1))
    found = []
    for name in ("a.txt", "a.txt.gz"):
        findings = Findings()
        sources = find_sources([str(tmp_path / name)], None, None, Reading())
        (document,) = read_documents(cut_units(sources, Reading())[0], Reading(), findings)
        assert not isinstance(document.parts, tuple)
        found.append(list(split_document(document, SplitRule("span", 0.1, 0))))
    assert found[0] == found[1]
    assert "".join(piece.text for piece in found[0]) == text


def test_small_files_of_every_kind_are_read_in_groups(tmp_path: Path) -> None:
    for i in range(30):
        write_jsonl(tmp_path / f"a{i:02}.jsonl", [f"json {i}"])
        (tmp_path / f"b{i:02}.csv").write_text(f"text\ncsv {i}\n")
        (tmp_path / f"c{i:02}.txt").write_text(f"text {i}")
        (tmp_path / f"d{i:02}.jsonl.gz").write_bytes(gzip.compress(f'{{"text": "packed {i}"}}'.encode()))
    units = cut_units(find_sources([str(tmp_path)], None, None, Reading()), Reading(), 10**6)
    assert [(unit.kind, len(unit.paths)) for unit in units] == [("jsonl", 30), ("csv", 30), ("text", 30), ("jsonl", 30)]
    expected = [f"{kind} {i}" for kind in ("json", "csv", "text", "packed") for i in range(30)]
    assert read([tmp_path], unit_bytes=10**6) == read([tmp_path], unit_bytes=1) == expected


def test_file_without_separators_or_line_ends_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl"):
        with (tmp_path / name).open("wb") as file:
            file.write(b"one\n\n" if name == "a.txt" else b'{"text": "one"}\n')
            file.truncate(MAX_DOCUMENT + 5_000_000)  # a hole: takes no room
    with pytest.raises(
        DataError, match=r"a\.txt has no separator '\\n\\n' in 268,435,456 bytes: choose another --sepa"
    ):
        read([tmp_path / "a.txt"], Reading(separator="\n\n"), 10**9)
    with pytest.raises(
        DataError, match=r"a\.jsonl:2 is longer than 268,435,456 bytes: give a text of that size a file"
    ):
        read([tmp_path / "a.jsonl"], unit_bytes=10**9)


def test_every_kind_gives_the_same_documents(tmp_path: Path) -> None:
    texts = [f"{POEM} {i}" for i in range(50)]
    plain = write_jsonl(tmp_path / "a.jsonl", texts)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(plain.read_bytes()))
    rows = "".join(f'{i},"{text}"\n' for i, text in enumerate(texts))
    (tmp_path / "a.csv").write_text("id,text\n" + rows, encoding="utf-8")
    (tmp_path / "a.tsv").write_text("id\ttext\n" + rows.replace(',"', '\t"'), encoding="utf-8")
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.csv", "a.tsv"):
        assert read([tmp_path / name]) == texts, name


def test_parquet_and_datasets_give_the_same_documents(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    texts = [f"{POEM} {i}" for i in range(1000)]
    rows = datasets.Dataset.from_dict({"id": list(range(1000)), "text": texts})
    rows.to_parquet(tmp_path / "a.parquet", batch_size=100)
    rows.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": rows, "test": rows.select(range(3))}).save_to_disk(tmp_path / "dict")
    for name in ("a.parquet", "saved", "dict"):
        for unit_bytes in (1000, 10**9):
            assert read([tmp_path / name], unit_bytes=unit_bytes) == texts, name
    assert read([tmp_path / "dict"], Reading(dataset_split="test")) == texts[:3]
    with pytest.raises(DataError, match="has no split 'dev', it has train, test: choose with --dataset-split"):
        read([tmp_path / "dict"], Reading(dataset_split="dev"))
    for name in ("a.parquet", "saved"):
        with pytest.raises(DataError, match=f"{name} has no field 'body', its fields are id, text: choose with --fi"):
            read([tmp_path / name], Reading(field="body"))
        with pytest.raises(DataError, match=f"{name} field 'id' is a int, no text"):
            read([tmp_path / name], Reading(field="id"))


def test_folder_gives_known_files_sorted_and_glob_any(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "sub/c.txt", "x.py", ".hidden/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert read([tmp_path]) == ["a.md", "b.txt", "sub/c.txt"]
    assert read([tmp_path], pattern="**/*.py") == ["x.py"]
    assert read([tmp_path / "*.txt", tmp_path / "b.txt"]) == ["b.txt"]  # once
    assert read([tmp_path / "x.py", tmp_path / "a.md"]) == ["x.py", "a.md"]  # inputs in the order given


def test_kind_is_told_by_suffix_or_by_format(tmp_path: Path) -> None:
    names = {"a.jsonl.gz": "jsonl", "a.CSV": "csv", "a.txt.zst": "text", "a.py": "text", "a": "text"}
    assert {name: kind_of(Path(name)) for name in names} == names
    file = write_jsonl(tmp_path / "a.dump", ["x"])
    assert read([file], kind="jsonl") == ["x"]
    with pytest.raises(DataError, match="--format xml is not known: it is one of text, jsonl"):
        read([file], kind="xml")


def test_invalid_bytes_are_counted_and_named_by_line(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes(b"fine\nfine\nbad \xff here and \xc3 there\n")
    lines = tmp_path / "b.jsonl"
    lines.write_bytes(b'{"text": "one"}\n{"text": "t\xffwo"}\n{"text": "half \\ud800"}\n')
    table = tmp_path / "c.csv"
    table.write_bytes(b"text\nok\n\xe9t\xe9\n")
    for unit_bytes in (1, 10**6):
        documents, findings = read_with_findings([text, lines, table], Reading(), unit_bytes)
        assert documents[0] == "fine\nfine\nbad \ufffd here and \ufffd there\n"
        assert documents[1:4] == ["one", "t\ufffdwo", "half \ufffd"]
        assert findings.encoding_errors == 6
        assert findings.encoding_places == [
            f"{text}:3 byte 0xff",
            f"{lines}:2 byte 0xff",
            f"{lines}:3 character '\\ud800'",
            f"{table}:3 byte 0xe9",
        ]
    with pytest.raises(DataError, match=r"a\.txt:3 byte 0xff is not UTF-8: convert the file, or use --encoding-errors"):
        read([text], Reading(encoding_errors="fail"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "two words".encode("utf-16"),
            r"a\.txt begins as UTF-16 does: convert it \(iconv -f UTF-16 -t UTF-8\)",
        ),
        (b"\x7fELF\x02\x01\x01\x00 program", r"a\.txt holds zero bytes, which text in UTF-8 does not: convert it"),
    ],
)
def test_what_is_no_utf_8_at_all_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read([tmp_path / "a.txt"])


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    for name, data in (("a.txt", b"abc"), ("a.jsonl", b'{"text": "abc"}'), ("a.csv", b"text\nabc\n")):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + data)
        assert read([tmp_path / name]) == ["abc"]
    assert read([tmp_path / "a.txt"], Reading(separator="b")) == ["a", "c"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": ', r"a\.jsonl:3 is no JSON object \(Expecting value.*repair the line or use --skip-bad-lines"),
        ("[1]", r"a\.jsonl:3 is no JSON object \(it holds a list\)"),
        ('{"body": "x", "id": 1}', r"a\.jsonl:3 has no field 'text', its fields are body, id: choose with --field"),
        ('{"text": 7}', r"a\.jsonl:3 field 'text' is a int, no text"),
    ],
)
@pytest.mark.parametrize("unit_bytes", [1, 10**6])
def test_bad_json_line_is_named(tmp_path: Path, line: str, message: str, unit_bytes: int) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"text": "one"}}\n\n{line}\n{{"text": "two"}}\n')
    with pytest.raises(DataError, match=message):
        read([file], unit_bytes=unit_bytes)


def test_bad_json_lines_can_be_skipped_and_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\n{"te\n7\n{"text": null}\n{"text": "two"}\n')
    documents, findings = read_with_findings([file], Reading(skip_bad_lines=True), 1)
    assert documents == ["one", "two"]
    assert (findings.bad_lines, findings.empty_documents) == (2, 1)
    assert findings.bad_places == [f"{file}:2", f"{file}:3"]


def test_csv_without_the_column_lists_those_it_has(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,body\n1,x\n")
    with pytest.raises(DataError, match=r"a\.csv:1 has no field 'text', its fields are id, body: choose with --field"):
        read([tmp_path / "a.csv"])
    assert read([tmp_path / "a.csv"], Reading(field="body")) == ["x"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "b.jsonl.gz"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    data = gzip.compress(b'{"text": "x"}\n' * 9)[:20] if name.startswith("b") else b"junk, no archive"
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=rf"{name} (is damaged|is no parquet file|cannot be read)"):
        read([tmp_path / name])


def test_missing_inputs_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("x")
    for path, pattern, message in (
        ("nope.txt", None, r"nope\.txt does not exist \(a dataset of the Hugging Face hub is written hf:NAME\)"),
        ("*.txt", None, r"\*\.txt matches no file"),
        ("", None, r"has no file ending in \.txt .*--glob"),
        ("", "*.md", r"has no file that matches --glob '\*\.md'"),
    ):
        with pytest.raises(DataError, match=message):
            read([tmp_path / path], pattern=pattern)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=r"empty\.txt is empty: 1 file\(s\) without a byte"):
        read([tmp_path / "empty.txt"])


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "gone.txt"
    file.write_text("x")
    units = cut_units(find_sources([str(file)], None, None, Reading()), Reading())
    file.unlink()
    with pytest.raises(DataError, match=r"input .*gone\.txt cannot be read: No such file or directory"):
        list(read_documents(units[0], Reading(), Findings()))


def test_hub_name_that_cannot_be_had_is_one_line(monkeypatch: Any) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"datasets cannot load hf:no/such \(split 'train'\): "):
        find_sources(["hf:no/such"], None, None, Reading())


def test_parts_are_the_same_however_text_arrives() -> None:
    text = ("word " * 30 + "\n" + "    indented " * 9 + "\n") * 9000 + "x" * (PART * 2)
    parts = list(encode_parts([text]))
    assert "".join(parts) == text
    assert max(map(len, parts)) <= PART
    assert parts[0].endswith("\n")
    assert parts[1].startswith("word")
    for step in (1000, 77_777, PART):
        assert list(encode_parts(text[i : i + step] for i in range(0, len(text), step))) == parts


def test_span_split_holds_out_the_end_at_a_break() -> None:
    text = "".join(f"line {i} of a novel\n" for i in range(10_000))
    size = len(text)
    blocks = (text[i : i + 5000] for i in range(0, size, 5000))
    for document in (Document((text,)), Document(blocks, lambda: size)):
        pieces = list(split_document(document, SplitRule("span", 0.1, 0)))
        assert "".join(piece.text for piece in pieces) == text
        assert [piece.split for piece in pieces] == ["train", "validation"]
        assert [piece.is_last for piece in pieces] == [True, True]
        assert pieces[0].text.endswith("\n")
        assert abs(len(pieces[1].text) / size - 0.1) < 0.001


def test_hash_split_depends_on_text_and_seed_alone() -> None:
    def held_out(seed: int) -> set[str]:
        rule = SplitRule("hash", 0.1, seed)
        texts = [f"document {i}" for i in range(2000)]
        pieces = [piece for text in texts for piece in split_document(Document((text,)), rule)]
        assert [piece.text for piece in pieces] == texts
        return {piece.text for piece in pieces if piece.split == "validation"}

    assert held_out(0) == held_out(0)
    assert 140 < len(held_out(0)) < 260
    assert len(held_out(0) & held_out(1)) < 60


def test_reading_text_imports_no_heavy_library() -> None:
    heavy = ("torch", "pyarrow", "datasets", "transformers", "sentencepiece")
    code = f"import sys, scaletrain.data.prepare.worker; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
