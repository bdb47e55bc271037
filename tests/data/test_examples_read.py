"""Labelled files as a whole: which are read, what is told of faults, what is held out, and the labels there are."""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from scaletrain.config.finetune_schema import FinetuneData, TaskSection
from scaletrain.data.examples.example import Example, Examples, Fault
from scaletrain.data.examples.hold_out import hold_out
from scaletrain.data.examples.labels import check_labels, class_counts, label_set
from scaletrain.data.examples.read import read_examples
from scaletrain.errors import ConfigError, DataError

CLASSIFY = TaskSection(kind="classify")


def read(*paths: Path | str, what: str = "data.train", **data: Any) -> Examples:
    names = tuple(map(str, paths))
    return read_examples(names, FinetuneData(train=names, **data), CLASSIFY, what)


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def good(text: str, label: str = "a") -> dict[str, Any]:
    return {"text": text, "label": label}


def texts(examples: Examples) -> list[str]:
    return [example.values["text"] for example in examples.kept]


# files


def test_files_and_globs_in_their_order_each_once(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write(tmp_path / f"{name}.jsonl", good(name))
    (tmp_path / "d.csv").write_text("text,label\nd,a\n")
    (tmp_path / "[odd].ndjson").write_text(json.dumps(good("odd")))
    found = read(tmp_path / "c.jsonl", f"{tmp_path}/*.jsonl", tmp_path / "d.csv", tmp_path / "[odd].ndjson")
    assert texts(found) == ["c", "a", "b", "d", "odd"]
    assert found.kept[1].place == f"{tmp_path}/a.jsonl:1"
    assert texts(read(f"{tmp_path}/**/[ab].jsonl")) == ["a", "b"]


def test_a_format_by_name_reads_any_ending(tmp_path: Path) -> None:
    assert texts(read(write(tmp_path / "x.txt", good("x")), format="jsonl")) == ["x"]


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        ("y*.jsonl", {}, r"data.train=/.*/y\*.jsonl matches no file: correct the pattern"),
        ("trian.jsonl", {}, "data.train=/.*/trian.jsonl does not exist: did you mean train.jsonl?"),
        ("none/x.csv", {}, "data.train=/.*/none/x.csv does not exist: correct the path"),
        ("", {}, r"data.train=/.* is a folder: name its files, such as /.*/\*.jsonl"),
        ("x.txt", {}, "data.train=/.*/x.txt ends in .txt, which tells no format: set data.format to what it holds"),
        ("x", {}, "data.train=/.*/x ends in no suffix, which tells no format"),
        ("empty.jsonl", {}, "data.train=/.*/empty.jsonl holds no example: fill it"),
        ("a|b|c", {}, r"data.train=/.*/a\|b\|c should be the names of two texts of equal lines with | between them"),
        ("train.jsonl", {"format": "lines"}, "data.train=/.*/train.jsonl should be the names of two texts"),
        ("x|y.en", {}, "data.train=y.en does not exist: correct the path"),
        ("bad.jsonl.gz", {}, "bad.jsonl.gz is damaged or not what its name says .*: copy it again"),
        ("bad.jsonl.zst", {}, "bad.jsonl.zst is damaged or not what its name says .*: copy it again"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, data: dict[str, Any], line: str) -> None:
    write(tmp_path / "train.jsonl", good("x"))
    for plain in ("x", "x.txt", "empty.jsonl", "bad.jsonl.gz", "bad.jsonl.zst"):
        (tmp_path / plain).write_text("plain" if plain.startswith("bad") else "")
    with pytest.raises(DataError, match=line):
        read(tmp_path / name, **data)


def test_a_url_is_refused() -> None:
    with pytest.raises(DataError, match="data.train=s3://b/x.csv is a URL, and labelled files are read from a disk"):
        read("s3://b/x.csv")


@pytest.mark.parametrize(("mode", "name"), [(0, "shut/x.jsonl"), (0o755, "open/x.jsonl")])
def test_what_may_not_be_read_is_named(mode: int, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are shut for nobody from above
        Path(folder).chmod(0o755)
        file = Path(folder, name)
        file.parent.mkdir(parents=True)
        write(file, good("x")).chmod(0)
        file.parent.chmod(mode)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)  # nobody
        try:
            with pytest.raises(DataError, match=rf"{name[:4]}\S* cannot be read: Permission denied"):
                read(file)
        finally:
            if is_root:
                os.seteuid(0)
            file.parent.chmod(0o700)


def test_an_unknown_field_in_columns_is_an_error(tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", good("x"))
    with pytest.raises(ConfigError, match="data.columns.texts=t is no field of an example of task.kind=classify: did"):
        read(file, columns={"texts": "t"})
    with pytest.raises(ConfigError, match="data.columns.q=t is no field .*: the fields are text, pair, label"):
        read(file, columns={"q": "t"})


def test_max_examples_takes_the_first_good_ones_of_train(tmp_path: Path) -> None:
    records = [good("one"), good(""), good("two"), good("three"), good("")]
    file, more = write(tmp_path / "x.jsonl", *records), write(tmp_path / "y.jsonl", good("four"))
    found = read(file, more, max_examples=2)
    assert texts(found) == ["one", "two"]
    assert len(found.faults) == 1
    assert texts(read(file, more, max_examples=4)) == ["one", "two", "three", "four"]
    assert len(read(file, more, max_examples=2, what="data.validation").kept) == 4


# faults


def test_faults_are_told_in_one_line_with_their_places(tmp_path: Path) -> None:
    records = [good("x"), *[good("")] * 5, {"text": "x"}, {"label": "a"}, good("x", "")]
    file = write(tmp_path / "x.jsonl", *records)
    story = (
        f"data.train: 8 of 9 examples {{}}: empty text ({file}:2, {file}:3, {file}:4 and 2 more); no column label (the "
        f"file has text): name the column that holds it in data.columns.label ({file}:7); no column text (the file has "
        f"label): name the column that holds it in data.columns.text ({file}:8) and 1 other problem"
    )
    found = read(file)
    with pytest.raises(DataError) as error:
        found.check("refuse")
    remedy = "; repair them, or set data.on_fault=skip to go on without them"
    assert str(error.value) == story.format("cannot be used") + remedy
    assert found.check("skip") == [story.format("are left out")]


def test_a_file_whose_examples_all_have_one_fault_is_told_once(tmp_path: Path) -> None:
    right = write(tmp_path / "a.jsonl", good("x"), good(""))
    wrong = write(tmp_path / "b.jsonl", *[{"text": f"{n}", "lable": "a"} for n in range(1000)])
    found = read(right, wrong)
    problem = "no column label (the file has text, lable): did you mean lable?"
    assert found.faults == [Fault(f"{right}:2", "empty text"), Fault(str(wrong), problem, 1000)]
    assert found.check("skip")[0].startswith("data.train: 1,001 of 1,002 examples are left out: empty text (/")
    single = write(tmp_path / "c.jsonl", {"text": "x", "lable": "a"})
    assert read(single).faults == [Fault(f"{single}:1", problem)]
    mixed = write(tmp_path / "d.jsonl", {"text": "x", "lable": "a"}, good(""))
    assert len(read(mixed).faults) == 2


def test_nothing_left_is_an_error_even_where_faults_are_skipped(tmp_path: Path) -> None:
    found = read(write(tmp_path / "x.jsonl", good(""), good("")), what="data.validation")
    with pytest.raises(DataError, match="data.validation: 2 of 2 examples cannot be used, none is left: empty text"):
        found.check("skip")


# held out


def classified(*named: str) -> list[Example]:
    return [Example({"text": text, "pair": None, "label": "a"}, f"x:{n}") for n, text in enumerate(named)]


def test_the_same_examples_are_held_out_in_any_order_and_company() -> None:
    examples = classified(*(f"text {n}" for n in range(2000)))
    training, validation = hold_out(examples, 0.1, seed=3)
    assert len(training) + len(validation) == 2000
    assert 150 < len(validation) < 250
    mixed = random.Random(0).sample(examples, 2000)
    held = {example.place for example in validation}
    for company in (mixed, examples[:500]):
        assert {e.place for e in hold_out(company, 0.1, 3)[1]} == held & {e.place for e in company}
    assert {e.place for e in hold_out(examples, 0.1, 4)[1]} != held


def test_equal_texts_are_on_one_side() -> None:
    named = [f"{words} {n}" for n in range(200) for words in ("Some text", "some  TEXT", "some\ntext")]
    training, validation = hold_out(classified(*named), 0.3, seed=0)
    numbers = [{e.values["text"].split()[-1] for e in side} for side in (training, validation)]
    assert not numbers[0] & numbers[1]


@pytest.mark.parametrize(
    "make",
    [
        lambda n: {"text": f"{n}", "pair": "x", "label": f"{n % 7}"},
        lambda n: {"tokens": ("a", f"{n}"), "tags": (f"{n % 7}", "O")},
        lambda n: {"id": f"{random.random()}", "question": f"{random.random()}", "context": f"{n}", "answers": ()},
        lambda n: {"messages": ({"role": "user", "content": f"{n}"}, {"role": "assistant", "content": f"{n % 7}"})},
    ],
)
def test_what_is_asked_decides_not_what_is_answered(make: Any) -> None:
    examples = [Example(make(n % 50), f"x:{n}") for n in range(100)]
    held = [e.place for e in hold_out(examples, 0.3, seed=1)[1]]
    assert 0 < len(held) < 100
    assert {f"x:{(int(place[2:]) + 50) % 100}" for place in held} == set(held)


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_neither_side_of_a_few_examples_is_empty(share: float) -> None:
    training, validation = hold_out(classified("a", "b", "c"), share, seed=0)
    assert sorted((len(training), len(validation))) == [1, 2]


def test_one_text_cannot_be_divided() -> None:
    line = "data.validation_share=0.1 has nothing to hold out: all 2 examples have the same text; set data.validation"
    with pytest.raises(DataError, match=line):
        hold_out(classified("a", "A "), 0.1, seed=0)


# labels


def labelled(*labels: Any) -> list[Example]:
    return [Example({"text": "x", "pair": None, "label": label}, f"x:{n}") for n, label in enumerate(labels, 1)]


def tagged(*tags: str) -> list[Example]:
    return [Example({"tokens": ("x",) * len(tags), "tags": tags}, "x:1")]


@pytest.mark.parametrize(
    ("examples", "task", "expected"),
    [
        (labelled("b", "a", "b"), {}, ("a", "b")),
        (labelled("10", "9", "-1"), {}, ("-1", "9", "10")),
        (labelled("10", "9", "x"), {}, ("10", "9", "x")),
        (labelled("b", "a"), {"labels": ("b", "a", "c")}, ("b", "a", "c")),
        (labelled(("b", "a"), (), ("c",)), {"multi_label": True}, ("a", "b", "c")),
        (labelled(("a",), ()), {"multi_label": True}, ("a",)),
        (labelled(1.5), {"regression": True}, ()),
        (tagged("I-X", "O", "B-X", "A"), {"kind": "tag"}, ("O", "A", "B-X", "I-X")),
    ],
)
def test_labels_in_their_order(examples: list[Example], task: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert label_set(examples, TaskSection(**{"kind": "classify"} | task)) == expected


def test_one_label_teaches_nothing() -> None:
    with pytest.raises(
        DataError, match="data.train has only the label a in 2 examples: there is nothing to tell apart"
    ):
        label_set(labelled("a", "a"), CLASSIFY)


def test_validation_labels_that_training_lacks_are_named() -> None:
    check_labels(("a", "b"), labelled("a", "b", "a"))
    check_labels((), labelled(1.5))
    line = r"data.validation has labels that data.train lacks: c \(x:2\), d \(x:3\); name all labels in task.labels, or"
    with pytest.raises(DataError, match=line):
        check_labels(("a", "b"), labelled("a", ("b", "c"), "d", "c"))
    with pytest.raises(DataError, match=r"held has labels that .* lacks: 0 \(x:1\), .*, 4 \(x:5\) and 3 more; name"):
        check_labels(("a",), labelled(*map(str, range(8))), "held")
    with pytest.raises(DataError, match=r"lacks: B-X \(x:1\);"):
        check_labels(("O",), tagged("O", "B-X"))


def test_class_counts_have_all_labels() -> None:
    assert class_counts(labelled("a", "b", "a"), ("c", "a", "b")) == {"c": 0, "a": 2, "b": 1}
    assert class_counts(labelled(("a", "b"), ("a",)), ()) == {"a": 2, "b": 1}
    assert class_counts(tagged("O", "O", "B-X"), ("O", "B-X")) == {"O": 2, "B-X": 1}


def test_reading_examples_needs_no_torch() -> None:
    names = "read", "hold_out", "labels"
    script = "".join(f"import scaletrain.data.examples.{name}\n" for name in names)
    script += "import sys\nprint({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "set()"
