"""Records as the tasks want them: which values are taken, and why a record is no example."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from scaletrain.config.finetune_schema import FinetuneData, TaskKind, TaskSection
from scaletrain.data.examples.example import Examples
from scaletrain.data.examples.read import read_examples
from scaletrain.data.examples.tag import is_bio
from scaletrain.errors import ConfigError

Records = list[dict[str, Any]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.jsonl"


def read(file: Path, records: Records, kind: TaskKind, data: dict[str, Any], **task: Any) -> Examples:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_examples(
        str(file), FinetuneData(train=str(file), **data), TaskSection(kind=kind, **task), "data.validation"
    )


def one(file: Path, record: dict[str, Any], kind: TaskKind, data: dict[str, Any] | None = None, **task: Any) -> Any:
    """The values of the only example."""
    found = read(file, [record], kind, data or {}, **task)
    assert not found.faults
    return dict(found.kept[0].values)


def problem(file: Path, record: dict[str, Any], kind: TaskKind, data: dict[str, Any] | None = None, **task: Any) -> str:
    """Why the only record is no example."""
    found = read(file, [record], kind, data or {}, **task)
    assert not found.kept
    assert found.faults[0].place == f"{file}:1"
    return found.faults[0].problem


# classify


@pytest.mark.parametrize(
    ("label", "task", "expected"),
    [
        ("  sports ", {}, "sports"),
        (3, {}, "3"),
        (3.0, {}, "3"),
        (2.5, {}, "2.5"),
        (True, {}, "true"),
        (1, {"labels": ("no", "yes")}, "yes"),
        (1, {"labels": ("2", "1")}, "1"),
        ("yes", {"labels": ("no", "yes")}, "yes"),
        (3, {"regression": True}, 3.0),
        ("-1e3", {"regression": True}, -1000.0),
        (["b", "a", "b"], {"multi_label": True}, ("b", "a")),
        ([], {"multi_label": True}, ()),
        ([0, 1], {"multi_label": True, "labels": ("x", "y")}, ("x", "y")),
    ],
)
def test_labels_as_the_task_wants_them(file: Path, label: Any, task: dict[str, Any], expected: Any) -> None:
    assert one(file, {"text": "x", "label": label}, "classify", **task) == {
        "text": "x",
        "pair": None,
        "label": expected,
    }


def test_label_separator_divides_a_text(file: Path) -> None:
    data = {"label_separator": ";"}
    assert one(file, {"text": "x", "label": "a; b;"}, "classify", data, multi_label=True)["label"] == ("a", "b")
    assert one(file, {"text": "x", "label": ""}, "classify", data, multi_label=True)["label"] == ()


def test_a_pair_is_there_where_its_column_is(file: Path) -> None:
    assert one(file, {"text": "x", "pair": "y", "label": "a"}, "classify")["pair"] == "y"
    assert one(file, {"text": "x", "pair": None, "label": "a"}, "classify")["pair"] is None
    columns = {"text": "premise", "pair": "hypothesis", "label": "gold"}
    record = {"premise": "x", "hypothesis": "y", "gold": "a", "text": "no"}
    expected = {"text": "x", "pair": "y", "label": "a"}
    assert one(file, record, "classify", {"columns": columns}) == expected
    assert problem(file, record | {"hypothesis": None}, "classify", {"columns": columns}) == "empty pair"


@pytest.mark.parametrize(
    ("record", "task", "expected"),
    [
        ({"text": "x", "lable": "a"}, {}, "no column label (the file has text, lable): did you mean lable?"),
        (
            {"text": "x", "y": "a"},
            {},
            "no column label (the file has text, y): name the column that holds it in data.columns.label",
        ),
        ({"text": " \n", "label": "a"}, {}, "empty text"),
        ({"text": None, "label": "a"}, {}, "empty text"),
        ({"text": 12, "label": "a"}, {}, "text is a number (12) and should be text"),
        ({"text": ["x"], "label": "a"}, {}, "text is a list and should be text"),
        ({"text": {"x": 1}, "label": "a"}, {}, "text is an object and should be text"),
        ({"text": True, "label": "a"}, {}, "text is a truth value (true) and should be text"),
        ({"text": "x", "pair": "", "label": "a"}, {}, "empty pair"),
        ({"text": "x", "label": None}, {}, "empty label"),
        ({"text": "x", "label": float("nan")}, {}, "empty label"),
        ({"text": "x", "label": " "}, {}, "empty label"),
        ({"text": "x", "label": ["a"]}, {}, "label is a list and should be one label"),
        (
            {"text": "x", "label": "sport"},
            {"labels": ("sports", "arts")},
            "label sport is not one of task.labels (sports, arts): did you mean sports?",
        ),
        ({"text": "x", "label": 2}, {"labels": ("no", "yes")}, "label 2 is not one of task.labels (no, yes)"),
        (
            {"text": "x", "label": "z"},
            {"labels": tuple("abcdefghijkl")},
            "label z is not one of task.labels (a, b, c, d, e, f, g, h, i, j and 2 more)",
        ),
        ({"text": "x", "label": "good"}, {"regression": True}, "label good is not a number"),
        ({"text": "x", "label": "nan"}, {"regression": True}, "label nan is not a number"),
        ({"text": "x", "label": True}, {"regression": True}, "label true is not a number"),
        ({"text": "x", "label": 10**400}, {"regression": True}, None),
        (
            {"text": "x", "label": "a;b"},
            {"multi_label": True},
            "label is one text (a;b): set data.label_separator, or give a list",
        ),
        ({"text": "x", "label": None}, {"multi_label": True}, "label is null and should be a list of labels"),
        ({"text": "x", "label": ["a", ""]}, {"multi_label": True}, "empty label"),
    ],
)
def test_what_cannot_be_classified(file: Path, record: dict[str, Any], task: dict[str, Any], expected: str) -> None:
    found = problem(file, record, "classify", **task)
    assert found == expected if expected else found.endswith("... is not a number")


def test_a_file_of_many_columns_is_told_by_the_first(file: Path) -> None:
    names = ", ".join(f"c{n}" for n in range(20))
    record = {f"c{n}": "" for n in range(30)}
    assert problem(file, record, "classify").startswith(f"no column text (the file has {names} and 10 more): name")


# tag


def test_tokens_and_tags_of_a_list_or_a_text(file: Path) -> None:
    expected = {"tokens": ("Ann", "sat"), "tags": ("B-PER", "O")}
    assert one(file, {"tokens": ["Ann", "sat"], "tags": ["B-PER", "O"]}, "tag") == expected
    assert one(file, {"tokens": " Ann  sat", "tags": "B-PER O"}, "tag") == expected
    numbers = {"words": ["Ann", "sat"], "ner_tags": [1, 0]}
    columns = {"columns": {"tokens": "words", "tags": "ner_tags"}}
    assert one(file, numbers, "tag", columns, labels=("O", "B-PER")) == expected


@pytest.mark.parametrize(
    ("tokens", "tags", "expected"),
    [
        ([], [], "empty tokens"),
        (["a", " "], ["O", "O"], "empty token"),
        (["a"], [""], "empty tag"),
        (["a", 1], ["O", "O"], "token is a number (1) and should be text"),
        (None, ["O"], "tokens is null and should be a list"),
        (["a", "b"], ["O"], "2 tokens and 1 tags: give each token one"),
        (["a"], ["LOC"], "tag LOC is not one of task.labels (O, B-PER, I-PER, B-X, I-X, B-, S)"),
        (["Ann", "Lee"], ["O", "I-PER"], "tag I-PER of token 2 (Lee) follows O: only B-PER may begin there"),
        (["Ann", "Lee"], ["B-X", "I-PER"], "tag I-PER of token 2 (Lee) follows B-X: only B-PER may begin there"),
        (["Ann"], ["I-PER"], "tag I-PER of token 1 (Ann) is the first: only B-PER may begin there"),
        (["Ann"], ["S"], "tag S of token 1 (Ann) is not O, B-X or I-X, as data.tag_scheme=bio says"),
        (["Ann"], ["B-"], "tag B- of token 1 (Ann) is not O, B-X or I-X, as data.tag_scheme=bio says"),
    ],
)
def test_what_cannot_be_tagged(file: Path, tokens: Any, tags: Any, expected: str) -> None:
    labels = ("O", "B-PER", "I-PER", "B-X", "I-X", "B-", "S")
    record = {"tokens": tokens, "tags": tags}
    assert problem(file, record, "tag", {"tag_scheme": "bio"}, labels=labels) == expected


def test_bio_is_asked_for_only_where_the_recipe_says_so(file: Path) -> None:
    entity = {"tokens": ["a", "b", "c", "d"], "tags": ["B-X", "I-X", "I-X", "B-X"]}
    assert one(file, entity, "tag", {"tag_scheme": "bio"})["tags"] == ("B-X", "I-X", "I-X", "B-X")
    for scheme in ("auto", "plain"):
        assert one(file, {"tokens": ["a"], "tags": ["I-X"]}, "tag", {"tag_scheme": scheme})["tags"] == ("I-X",)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(("O", "B-X", "I-X"), True), (("B-X",), True), (("O", "I-X"), False), (("O", "B-X", "S"), False), (("O",), False)],
)
def test_bio_is_told_by_the_tags(labels: tuple[str, ...], expected: bool) -> None:
    assert is_bio(labels) is expected


# span_qa

CONTEXT = "Ann met Bob, and Bob met Ann."


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([{"text": "Bob", "answer_start": 8}, {"text": "Ann", "answer_start": 25}], (("Bob", 8), ("Ann", 25))),
        ({"text": ["Bob"], "answer_start": [17]}, (("Bob", 17),)),
        ({"text": "Bob", "answer_start": 17}, (("Bob", 17),)),
        ('{"text": ["Bob"], "answer_start": [17]}', (("Bob", 17),)),
        ('[{"text": "Bob", "answer_start": 8}]', (("Bob", 8),)),
        ([], ()),
        (None, ()),
        ({"text": [], "answer_start": []}, ()),
    ],
)
def test_answers_with_their_places(file: Path, answers: Any, expected: Any) -> None:
    record = {"question": "Who?", "context": CONTEXT, "answers": answers}
    assert one(file, record, "span_qa") == {
        "id": f"{file}:1",
        "question": "Who?",
        "context": CONTEXT,
        "answers": expected,
    }
    assert one(file, record | {"id": 7}, "span_qa")["id"] == "7"


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (
            [{"text": "Bob", "answer_start": 9}],
            "answer Bob is not at answer_start 9 of the context: it stands at 8, 17",
        ),
        (
            [{"text": "n", "answer_start": 0}],
            "answer n is not at answer_start 0 of the context: it stands at 1, 2, 14 and further on",
        ),
        (
            [{"text": "Eve", "answer_start": -1}],
            "answer Eve is not at answer_start -1 of the context: it does not occur there",
        ),
        ([{"text": "", "answer_start": 0}], "empty answer"),
        ([{"text": "Ann", "answer_start": "0"}], "answer_start is text (0) and should be a whole number"),
        ([{"text": "Ann", "answer_start": True}], "answer_start is a truth value (true) and should be a whole number"),
        ([{"text": "Ann"}], "an answer is an object and should be an object with text and answer_start"),
        (["Ann"], "an answer is text (Ann) and should be an object with text and answer_start"),
        ({"text": ["Ann"], "answer_start": []}, "1 answers and 0 starts: give each answer one"),
        ({"answer_start": []}, "answers.text is null and should be a list"),
        ("Ann", "answers is text and should be a list (Ann)"),
        (3, "answers is a number (3) and should be a list"),
    ],
)
def test_answers_that_are_not_in_the_context(file: Path, answers: Any, expected: str) -> None:
    assert problem(file, {"question": "Who?", "context": CONTEXT, "answers": answers}, "span_qa") == expected


# sft


def messages(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


QUESTION = messages(("user", "Hi"), ("assistant", "Hello"))


@pytest.mark.parametrize(
    ("record", "columns", "expected"),
    [
        ({"messages": QUESTION}, {}, QUESTION),
        ({"messages": [m | {"weight": 1} for m in QUESTION], "prompt": "Hi"}, {}, QUESTION),
        ({"messages": json.dumps(QUESTION)}, {}, QUESTION),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, {}, QUESTION),
        ({"conversations": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello"}]}, {}, QUESTION),
        ({"dialog": QUESTION}, {"messages": "dialog"}, QUESTION),
        ({"instruction": "Hi", "input": "", "output": "Hello"}, {}, QUESTION),
        ({"instruction": "Hi", "output": "Hello"}, {}, QUESTION),
        ({"instruction": "Hi", "input": None, "output": "Hello"}, {"input": "input"}, QUESTION),
        ({"instruction": "Hi", "input": " ", "output": "Hello"}, {}, QUESTION),
        (
            {"instruction": "Add", "input": "1 2", "output": "3"},
            {},
            messages(("user", "Add\n\n1 2"), ("assistant", "3")),
        ),
        ({"prompt": "Hi", "response": "Hello"}, {}, QUESTION),
        ({"question": "Hi", "answer": "Hello"}, {"prompt": "question", "response": "answer"}, QUESTION),
        ({"messages": [], "q": "Hi", "response": "Hello"}, {"prompt": "q"}, QUESTION),
        ({"source": "Hi", "target": "Hello"}, {}, QUESTION),
    ],
)
def test_shapes_of_conversations(file: Path, record: dict[str, Any], columns: dict[str, str], expected: Any) -> None:
    assert one(file, record, "sft", {"columns": columns}) == {"messages": tuple(expected)}


def test_a_system_message_stands_first_once(file: Path) -> None:
    system = messages(("system", "Be kind."))
    assert one(file, {"messages": QUESTION}, "sft", {"system": "Be kind."})["messages"] == (*system, *QUESTION)
    own = messages(("system", "Be brief."))
    assert one(file, {"messages": own + QUESTION}, "sft", {"system": "Be kind."})["messages"] == (*own, *QUESTION)


def test_tools_answer_between_the_assistants_messages(file: Path) -> None:
    turns = messages(
        ("user", "Time?"),
        ("assistant", "call"),
        ("tool", "12"),
        ("tool", "CET"),
        ("assistant", "Noon"),
        ("user", "Ok"),
        ("assistant", "Bye"),
    )
    assert one(file, {"messages": turns}, "sft")["messages"] == tuple(turns)


USER, ANSWER = QUESTION


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([], "no messages"),
        ([USER], "the last message is from user and should be the assistant's, to learn from"),
        ([ANSWER], "message 1 is from assistant: at the beginning comes system or user"),
        ([USER, USER], "message 2 is from user: after user comes assistant"),
        ([USER, ANSWER, ANSWER], "message 3 is from assistant: after assistant comes user or tool"),
        ([USER, *messages(("system", "x"))], "message 2 is from system: after user comes assistant"),
        (messages(("bot", "x")), "message 1 is from bot: a role is one of human, gpt, system, user, assistant, tool"),
        ([{"from": None, "value": "x"}], "message 1 is from null: a role is one of"),
        ([USER, {"role": "assistant", "content": ""}], "empty content of message 2 (assistant)"),
        ([USER, {"role": "assistant", "content": None}], "empty content of message 2 (assistant)"),
        ([{"role": "user", "content": [1]}], "content of message 1 (user) is a list and should be text"),
        ([{"role": "user", "text": "x"}], "message 1 lacks role and content, or from and value (its keys: role, text)"),
        (["Hi"], "message 1 is text (Hi) and should be an object with role and content"),
        ("Hi", "messages is text and should be a list (Hi)"),
        ({"role": "user"}, "messages is an object and should be a list"),
    ],
)
def test_conversations_that_teach_nothing(file: Path, turns: Any, expected: str) -> None:
    assert problem(file, {"messages": turns}, "sft", {"system": "Be kind."}).startswith(expected)


SHAPES = (
    "no column messages, conversations, instruction and output, prompt and response, or source and target (the file has"
)


@pytest.mark.parametrize(
    ("record", "columns", "expected"),
    [
        ({"mesages": []}, {}, f"{SHAPES} mesages): did you mean data.columns={{messages: mesages}}?"),
        ({"q": "x"}, {}, f"{SHAPES} q): name them in data.columns, or write data.prompt and data.response"),
        ({}, {}, f"{SHAPES} none): name them"),
        (
            {"instruction": "x", "response": "y"},
            {},
            "no column output (the file has instruction, response): name the column that holds it in "
            "data.columns.output",
        ),
        ({"prompt": "x", "response": " "}, {}, "empty response"),
        ({"instruction": "x", "input": 3, "output": "y"}, {}, "input is a number (3) and should be text"),
        (
            {"instruction": "x", "output": "y"},
            {"input": "inputs"},
            "no column inputs (the file has instruction, output): name the column that holds it in data.columns.input",
        ),
    ],
)
def test_records_without_a_conversation(
    file: Path, record: dict[str, Any], columns: dict[str, str], expected: str
) -> None:
    assert problem(file, record, "sft", {"columns": columns}).startswith(expected)


def test_templates_over_the_columns(file: Path) -> None:
    data = {"prompt": "{{{source}}} to {lang name}:{hint}", "response": "{n}"}
    record = {"source": "{x} {0.__class__}", "lang name": "German", "hint": None, "n": 4}
    expected = messages(("user", "{{x} {0.__class__}} to German:"), ("assistant", "4"))
    assert one(file, record, "sft", data) == {"messages": tuple(expected)}
    named = data | {"columns": {"source": "en"}}
    assert one(file, record | {"en": "good"}, "sft", named)["messages"][0]["content"] == "{good} to German:"
    constant = {"prompt": "Write.", "response": "{n}"}
    assert one(file, record, "sft", constant)["messages"][0]["content"] == "Write."


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            {"sources": "x", "target": "y"},
            "data.prompt speaks of {source} (the file has sources, target): did you mean {sources}?",
        ),
        ({"en": "x", "target": "y"}, "data.prompt speaks of {source} (the file has en, target)"),
        ({"source": " ", "target": "y"}, "empty columns for data.prompt"),
        ({"source": "x", "target": None}, "empty columns for data.response"),
        ({"source": ["x"], "target": "y"}, "column source is a list and should be text, for data.prompt"),
    ],
)
def test_records_that_do_not_fill_a_template(file: Path, record: dict[str, Any], expected: str) -> None:
    assert problem(file, record, "sft", {"prompt": "Say {source}", "response": "{target}"}) == expected


@pytest.mark.parametrize(
    ("prompt", "response", "line"),
    [
        (
            "{a",
            "{b}",
            r"data.prompt={a is no template (expected '}' before end of string): write {column}, and {{ for a brace",
        ),
        ("{}", "{b}", "data.prompt={} has {} with a format or no name: write {column} alone"),
        ("{a}", "{b:>3}", "data.response={b:>3} has {b} with a format or no name: write {column} alone"),
        ("{a}", "{b!r}", "data.response={b!r} has {b} with a format or no name: write {column} alone"),
        ("{a}", "b", "data.response=b names no column: each answer would be the same; write {column}"),
    ],
)
def test_templates_that_no_record_could_fill(file: Path, prompt: str, response: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(file, [{"a": "x", "b": "y"}], "sft", {"prompt": prompt, "response": response})
    assert str(error.value) == line


# the guide


@pytest.mark.parametrize("kind", get_args(TaskKind))
def test_the_records_of_the_guide_are_read(file: Path, kind: TaskKind) -> None:
    guide = Path(__file__).parents[2].joinpath("docs", "finetune-data.md").read_text(encoding="utf-8")
    section = guide.partition(f"### {kind}\n")[2].partition("\n#")[0]
    records = [json.loads(line) for line in section.splitlines() if line.startswith("{")]
    assert records
    assert not read(file, records, kind, {"tag_scheme": "bio"}).faults
