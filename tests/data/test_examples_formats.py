"""Formats of labelled files: each gives its records, and what is amiss in it is named by its place."""

import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from scaletrain.config.finetune_schema import FinetuneData, TaskKind, TaskSection
from scaletrain.data.examples.example import Examples
from scaletrain.data.examples.read import read_examples
from scaletrain.errors import ConfigError, DataError


def read(path: Path | str, kind: TaskKind = "classify", **data: Any) -> Examples:
    return read_examples(str(path), FinetuneData(train=str(path), **data), TaskSection(kind=kind), "data.train")


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def texts(examples: Examples) -> list[tuple[str, Any]]:
    return [(example.values["text"], example.values["label"]) for example in examples.kept]


def places(examples: Examples) -> list[str]:
    return [example.place.rpartition("/")[2] for example in examples.kept]


def told(examples: Examples) -> list[tuple[str, str]]:
    return [(fault.place.rpartition("/")[2], fault.problem) for fault in examples.faults]


def translations(examples: Examples) -> list[tuple[str, ...]]:
    return [tuple(message["content"] for message in example.values["messages"]) for example in examples.kept]


ROWS = [("Zwölf Boxer", "a"), ('He said "no",\nand left', "b"), ("line\u2028separator", "a")]
LINES = "".join(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in ROWS)


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["", ".gz", ".zst"])
def test_json_lines_plain_compressed_and_with_a_byte_order_mark(tmp_path: Path, bom: bytes, end: str) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[end]
    found = read(write(tmp_path / f"x.jsonl{end}", pack(bom + LINES.encode())))
    assert texts(found) == ROWS
    assert places(found) == [f"x.jsonl{end}:{number}" for number in (1, 2, 3)]
    assert found.check("refuse") == []


def test_bad_json_lines_are_named_and_the_others_kept(tmp_path: Path) -> None:
    good = '{"text": "x", "label": "a"}'
    lines = [good, '{"text" "x"}', "", "[1]", '{"text": "caf\xe9", "label": "a"}', "12" * 3000, "[" * 100_000, good]
    found = read(write(tmp_path / "x.jsonl", "\r\n".join(lines).encode("latin-1")))
    assert places(found) == ["x.jsonl:1", "x.jsonl:8"]
    expected = [
        ("x.jsonl:2", "no JSON (Expecting ':' delimiter, column 9)"),
        ("x.jsonl:4", "a list and should be an object"),
        ("x.jsonl:5", "not UTF-8: save the file as UTF-8"),
        ("x.jsonl:6", "no JSON that can be read (Exceeds the limit"),
        ("x.jsonl:7", "no JSON that can be read ("),
    ]
    for (place, problem), (where, start) in zip(told(found), expected, strict=True):
        assert place == where
        assert problem.startswith(start)


def test_half_a_surrogate_pair_is_a_fault_and_a_whole_one_is_a_character(tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", '{"text": "\\ud83d\\ude42", "label": "a"}\n{"text": "x\\ud83d", "label": "a"}\n')
    found = read(file)
    assert texts(found) == [("🙂", "a")]
    assert told(found) == [("x.jsonl:2", "text has half of a surrogate pair (\\ud83d)")]


def test_json_is_a_list_of_objects_by_itself_or_as_data(tmp_path: Path) -> None:
    rows = [{"text": text, "label": label} for text, label in ROWS]
    listed = read(write(tmp_path / "x.json", json.dumps([*rows, 3])))
    assert texts(listed) == ROWS
    assert places(listed)[1] == "x.json:[1]"
    assert told(listed) == [("x.json:[3]", "a number (3) and should be an object")]
    inside = read(write(tmp_path / "y.json", json.dumps({"version": 1, "data": rows})))
    assert texts(inside) == ROWS
    assert places(inside)[1] == "y.json:data[1]"


@pytest.mark.parametrize(
    ("content", "format_", "line"),
    [
        (b'{"a": 1}\n{"a": 2}', "json", r"x.json:2 is no JSON \(Extra data, column 1\): set data.format=jsonl"),
        (b'[1,\n"x]', "json", r"x.json:2 is no JSON \(Unterminated string .*, column 1\): repair the file"),
        (b'[1,\n"\xe9"]', "json", "x.json:2 is not UTF-8: save the file as UTF-8"),
        (b"[" * 100_000, "json", "x.json is no JSON that can be read .*: repair the file"),
        (b'{"a": 1}', "json", 'x.json is an object with a and should be a list of objects, or an object with "data"'),
        (b"[]", "squad", r'x.json is a list and should be an object with "data", a list of articles \(SQuAD\)'),
        (b'{"data": [{"a": 1}]}', "squad", r"x.json:data\[0\].paragraphs is null and should be a list, as in SQuAD"),
    ],
)
def test_a_json_file_that_cannot_be_read_is_an_error(tmp_path: Path, content: bytes, format_: str, line: str) -> None:
    with pytest.raises(DataError, match=line):
        read(write(tmp_path / "x.json", content), format=format_)


def question(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "question": "Who?", **more}


def test_squad_gives_each_question_with_its_context(tmp_path: Path) -> None:
    answered = question("q1", answers=[{"text": "Bob", "answer_start": 0}, {"text": "Bob", "answer_start": 9}])
    plausible = [{"text": "Bob", "answer_start": 0}]
    impossible = question("q2", is_impossible=True, answers=[], plausible_answers=plausible)
    paragraphs = [{"context": "Bob, not Bob", "qas": [answered, impossible, question("q3")]}, {"qas": [answered]}]
    content = {"version": "v2.0", "data": [{"title": "A", "paragraphs": []}, {"paragraphs": paragraphs}]}
    found = read(write(tmp_path / "x.json", json.dumps(content)), "span_qa")
    assert [example.values for example in found.kept] == [
        {"id": "q1", "question": "Who?", "context": "Bob, not Bob", "answers": (("Bob", 0), ("Bob", 9))},
        {"id": "q2", "question": "Who?", "context": "Bob, not Bob", "answers": ()},
    ]
    assert places(found)[1] == "x.json:data[1].paragraphs[0].qas[1]"
    assert found.kept[0].values["context"] is found.kept[1].values["context"]
    assert told(found) == [
        (
            "x.json:data[1].paragraphs[0].qas[2]",
            "no column answers (the file has id, question, context): name the column that holds it in "
            "data.columns.answers",
        ),
        ("x.json:data[1].paragraphs[1].qas[0]", "a question should be an object, in a paragraph with a context"),
    ]


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_tables_keep_quotes_delimiters_and_line_ends(tmp_path: Path, suffix: str, delimiter: str) -> None:
    file = tmp_path / f"x.{suffix}"
    with file.open("w", encoding="utf-8-sig", newline="") as out:
        csv.writer(out, delimiter=delimiter).writerows([("text", "label"), *ROWS, (f"a{delimiter}b", "c")])
    found = read(file)
    assert texts(found) == [*ROWS, (f"a{delimiter}b", "c")]
    assert places(found) == [f"x.{suffix}:{line}" for line in (2, 3, 5, 6)]


def test_a_tsv_with_quotes_that_are_no_quotes(tmp_path: Path) -> None:
    rows = [('"good movie', "1"), ("next", "0"), ('the "best" film', "1"), ('"x"', "0")]
    file = write(tmp_path / "x.tsv", "".join(f"{a}\t{b}\n" for a, b in [("text", "label"), *rows]))
    assert texts(read(file)) == rows


def test_rows_that_are_none_are_named(tmp_path: Path) -> None:
    lines = [b"text,label", b"x,a", b"x,a,b", b'"x" y,a', b"", b"caf\xe9,a", b"x", b"x,b", b'"x,a']
    found = read(write(tmp_path / "x.csv", b"\n".join(lines)))
    assert texts(found) == [("x", "a"), ("x", "b")]
    assert told(found) == [
        ("x.csv:3", "3 cells, the header has 2"),
        ("x.csv:4", "no row of a table (',' expected after '\"')"),
        ("x.csv:6", "not UTF-8: save the file as UTF-8"),
        ("x.csv:7", "1 cells, the header has 2"),
        ("x.csv:9", "no row of a table (unexpected end of data)"),
    ]


def test_a_table_with_two_columns_of_a_name_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="x.csv:1 names the column text twice: give each column a name of its own"):
        read(write(tmp_path / "x.csv", "text,label,text\n"))


def test_parquet_rows_are_counted_from_0(tmp_path: Path) -> None:
    count = 3000  # several batches
    table = pa.table({"text": [f"text {n}" for n in range(count)], "label": [n % 3 for n in range(count)]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    found = read(tmp_path / "x.parquet")
    assert texts(found) == [(f"text {n}", str(n % 3)) for n in range(count)]
    assert places(found)[2999] == "x.parquet:row 2999"


@pytest.mark.parametrize("content", [b"PAR1 but not really", b""])
def test_a_damaged_parquet_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="x.parquet is no parquet file or damaged .*: copy it again"):
        read(write(tmp_path / "x.parquet", content))


def sentences(examples: Examples) -> list[tuple[Sequence[str], Sequence[str]]]:
    return [(example.values["tokens"], example.values["tags"]) for example in examples.kept]


CONLL = """-DOCSTART-

# sent 1
# a comment
EU NNP B-ORG
rejects VB O

-DOCSTART- -X- O
Peter NNP B-PER
# X O
\u3000 X O
"""


def test_conll_sentences_end_at_blank_lines(tmp_path: Path) -> None:
    found = read(write(tmp_path / "x.conll", CONLL.replace("\n", "\r\n")), "tag", tag_scheme="bio")
    assert sentences(found) == [(("EU", "rejects"), ("B-ORG", "O"))]
    assert told(found) == [("x.conll:8", "empty token")]
    kept = read(write(tmp_path / "x.conll", CONLL.replace("\u3000", "\u3000x")), "tag", columns={"tags": "1"})
    assert sentences(kept)[1] == (("Peter", "#", "\u3000x"), ("NNP", "X", "X"))
    assert places(kept) == ["x.conll:5", "x.conll:8"]


def test_conll_columns_by_tabs_may_hold_spaces(tmp_path: Path) -> None:
    found = read(write(tmp_path / "x.conll", "O\tNew York\nO\tx\tis\n"), "tag", columns={"tokens": "-1", "tags": "0"})
    assert sentences(found) == [(("New York", "is"), ("O", "O"))]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a O\nNew York O\n\nb O\n", ("x.conll:2", "3 columns, the lines before have 2")),
        ("a O\nb\n\nb O\n", ("x.conll:2", "1 columns, the lines before have 2")),
        ("a O\ncaf\xe9 O\n\nb O\n", ("x.conll:2", "not UTF-8: save the file as UTF-8")),
    ],
)
def test_a_bad_conll_line_costs_its_sentence_only(tmp_path: Path, content: str, problem: tuple[str, str]) -> None:
    found = read(write(tmp_path / "x.conll", content.encode("latin-1")), "tag")
    assert (sentences(found), told(found)) == ([(("b",), ("O",))], [problem])


def test_conll_columns_that_are_not_there(tmp_path: Path) -> None:
    single = read(write(tmp_path / "x.conll", "a\nb\n"), "tag")
    assert told(single) == [("x.conll:1", "1 columns, and data.columns looks for tokens in 0 and tags in -1")]
    with pytest.raises(ConfigError, match="data.columns.tags=xpos is no column number: CoNLL's columns are numbered"):
        read(tmp_path / "x.conll", "tag", columns={"tags": "xpos"})


CONLLU = """# sent_id = 1
#text = Vámonos
1-2	Vámonos	_	_	_	_	_	_	_	_
1	Vamos	ir	VERB	V	_	0	root	_	_
2	nos	nosotros	PRON	P	_	1	obj	_	_
2.1	x	x	X	X	_	_	_	_	_

1	bad	X
"""


def test_conllu_words_without_ranges_and_empty_nodes(tmp_path: Path) -> None:
    file = write(tmp_path / "x.conllu", CONLLU)
    assert sentences(read(file, "tag")) == [(("Vamos", "nos"), ("VERB", "PRON"))]
    found = read(file, "tag", columns={"tokens": "LEMMA", "tags": "xpos"})
    assert sentences(found) == [(("ir", "nosotros"), ("V", "P"))]
    assert told(found) == [("x.conllu:8", "3 columns divided by tabs, CoNLL-U has 10")]
    with pytest.raises(ConfigError, match=r"data.columns.tags=upo is no column of CoNLL-U .*: did you mean upos?"):
        read(file, "tag", columns={"tags": "upo"})


def test_two_texts_of_equal_lines(tmp_path: Path) -> None:
    write(tmp_path / "a.de", "eins\r\nzwei\u2028zwei\n\ndrei\n")
    write(tmp_path / "b.en", b"one\ntwo\nnone\nt\xe9ree")
    found = read(f"{tmp_path}/a.de|{tmp_path}/b.en", "sft")
    assert translations(found) == [("eins", "one"), ("zwei\u2028zwei", "two")]
    assert found.kept[1].place == f"{tmp_path}/a.de|{tmp_path}/b.en:2"
    assert [fault.problem for fault in found.faults] == ["empty source", "not UTF-8: save the file as UTF-8"]


def test_two_texts_of_unequal_lines_are_an_error(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", "one"), write(tmp_path / "b", "eins\nzwei")
    with pytest.raises(DataError, match="a has 1 lines and /.*b 2: each line of one should have its counterpart"):
        read(f"{first}|{second}", "sft", format="lines")


PO = r"""
# José wrote this
msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\n"

#: a.c:1
msgid "Say \"hi\"\\n"
msgstr "Sag "
"\"hallo\"\n"
#, c-format
msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d Datei"
msgstr[1] "%d Dateien"

#, c-format, fuzzy
#| msgid "old"
msgid "unsure"
msgstr "unsicher"

msgid "not translated"
msgstr ""

#, fuzzy
#~ msgid "obsolete"
#~ msgstr "veraltet"
msgctxt "menu"
msgid "Open"
msgstr "Öffnen"
msgid "next"
msgstr "nächstes"

msgid "broken
msgstr "x"

msgid "no answer"

msgstr "no question"
"""


def test_po_entries_that_are_surely_translated(tmp_path: Path) -> None:
    found = read(write(tmp_path / "x.po", PO.replace("José", "Jos\udce9").encode(errors="surrogateescape")), "sft")
    assert translations(found) == [
        ('Say "hi"\\n', 'Sag "hallo"\n'),
        ("%d file", "%d Datei"),
        ("Open", "Öffnen"),
        ("next", "nächstes"),
        ("no answer", "no question"),
    ]
    assert places(found)[:2] == ["x.po:8", "x.po:12"]
    assert told(found) == [("x.po:34", "no line of a .po file")]


def test_po_entries_that_are_none(tmp_path: Path) -> None:
    content = (
        b'msgid "a"\nmsgid_plural "b"\n# c\n\nmsgid "d"\nmsgstr "caf\xe9"\n\n"x"\n# e\nmsgstr "f"\n# g\nmsgid "h"\n'
    )
    assert told(read(write(tmp_path / "x.po", content), "sft")) == [
        ("x.po:6", "not UTF-8: save the file as UTF-8"),
        ("x.po:10", "an entry without msgid"),
        ("x.po:12", "an entry without msgstr"),
    ]
