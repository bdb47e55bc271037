"""Sentences of CoNLL files: a token a line with columns for its tags, a blank line after each sentence."""

from collections.abc import Callable, Iterator

from scaletrain.config.finetune_schema import FinetuneData
from scaletrain.config.problems import closest
from scaletrain.data.examples.example import Fault
from scaletrain.data.examples.record import Record
from scaletrain.data.examples.text_file import Line, read_lines
from scaletrain.errors import ConfigError

_CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
Column = int


def read_conll(path: str, data: FinetuneData) -> Iterator[Record | Fault]:
    """Columns divided by tabs, or by spaces (then as many in each line); by default the first and the last count."""
    tokens, tags = (_number(data, field, default) for field, default in (("tokens", "0"), ("tags", "-1")))
    width = 0

    def cells_of(text: str) -> list[str] | str:
        nonlocal width
        if text.startswith("-DOCSTART-"):
            return []
        if "\t" in text:
            cells = text.split("\t")
        else:
            cells = [cell for cell in text.split(" ") if cell]  # a token may hold other spaces, such as U+3000
            width = width or len(cells)
            if len(cells) != width:  # `New York LOC`: a space inside a token
                return f"{len(cells)} columns, the lines before have {width}"
        count = len(cells)
        places = [column + count if column < 0 else column for column in (tokens, tags)]
        if not all(0 <= place < count for place in places) or places[0] == places[1]:
            return f"{count} columns, and data.columns looks for tokens in {tokens} and tags in {tags}"
        return cells

    return _read_sentences(path, data, (tokens, tags), cells_of)


def read_conllu(path: str, data: FinetuneData) -> Iterator[Record | Fault]:
    """The ten columns of CoNLL-U; ranges (1-2) and empty nodes (1.1) are no words."""
    places = tuple(_named(data, field, default) for field, default in (("tokens", "form"), ("tags", "upos")))

    def cells_of(text: str) -> list[str] | str:
        cells = [] if text.startswith("#") else text.split("\t")
        if cells and len(cells) != len(_CONLLU):
            return f"{len(cells)} columns divided by tabs, CoNLL-U has {len(_CONLLU)}"
        return cells if cells and cells[0].isdecimal() else []

    return _read_sentences(path, data, (places[0], places[1]), cells_of)


def _read_sentences(
    path: str, data: FinetuneData, columns: tuple[Column, Column], cells_of: Callable[[str], list[str] | str]
) -> Iterator[Record | Fault]:
    """A record a sentence; `cells_of` a line gives its cells, none if it is no token, or what is wrong with it."""
    names = [data.columns.get(field, field) for field in ("tokens", "tags")]  # as the task will look for them
    for lines in _sentences(path):
        words: list[list[str]] = []
        fault = None
        for number, text, problem in lines:
            cells = problem or cells_of(text.rstrip("\r\n"))
            if isinstance(cells, str):
                fault = Fault(f"{path}:{number}", cells)
                break
            if cells:
                words.append(cells)
        if fault is not None:
            yield fault
        elif words:
            values = {name: [word[column] for word in words] for name, column in zip(names, columns, strict=True)}
            yield Record(values, f"{path}:{lines[0].number}")


def _sentences(path: str) -> Iterator[list[Line]]:
    """The lines of each sentence. Comments stand before it: further down, a line `# O` is the token #."""
    lines: list[Line] = []
    for line in read_lines(path):
        if not line.text.strip(" \t\r\n"):
            if lines:
                yield lines
            lines = []
        elif lines or not (line.text.startswith("# ") or line.text.rstrip() == "#"):
            lines.append(line)
    if lines:
        yield lines


def _number(data: FinetuneData, field: str, default: str) -> Column:
    text = data.columns.get(field, default)
    try:
        return int(text)
    except ValueError:
        raise ConfigError(
            f"data.columns.{field}={text} is no column number: CoNLL's columns are numbered from 0, -1 is the last"
        ) from None


def _named(data: FinetuneData, field: str, default: str) -> Column:
    name = data.columns.get(field, default)
    if name.lower() not in _CONLLU:
        close = closest(name, _CONLLU)
        raise ConfigError(
            f"data.columns.{field}={name} is no column of CoNLL-U ({', '.join(_CONLLU)})"
            + (f": did you mean {close}?" if close else ": choose one")
        )
    return _CONLLU.index(name.lower())
