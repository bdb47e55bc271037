"""Records of gettext's .po files: source and target of each translated entry."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from scaletrain.config.finetune_schema import FinetuneData
from scaletrain.data.examples.example import Fault
from scaletrain.data.examples.record import Record
from scaletrain.data.examples.text_file import read_lines

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_LINE = re.compile(rf"(?:(msgctxt|msgid_plural|msgid|msgstr(?:\[\d+\])?)\s*)?({_QUOTED})")
_START = re.compile(r"#|(?:msgctxt|msgid)\b")
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r"}


@dataclass
class _Entry:
    """What was read of an entry: its texts by keyword."""

    texts: dict[str, str] = field(default_factory=dict)
    keyword: str = ""
    line: int = 0
    is_fuzzy: bool = False
    problem: str = ""

    @property
    def is_whole(self) -> bool:
        return bool(self.problem) or any(name.startswith("msgstr") for name in self.texts)


def read_po(path: str, data: FinetuneData) -> Iterator[Record | Fault]:
    """msgid and msgstr, of plurals the first form; entries without a sure translation (empty, fuzzy) are left out."""
    del data  # as the other readers
    entry = _Entry()
    for number, line, problem in read_lines(path):
        text = line.strip()
        if entry.is_whole and _START.match(text):
            yield from _records(entry, path)
            entry = _Entry()
        if text.startswith("#~") or not (text or entry.texts or entry.problem):
            entry = _Entry()  # a flag belongs to what follows at once; behind #~ stand entries that are out of use
        elif text.startswith("#,"):
            entry.is_fuzzy = entry.is_fuzzy or "fuzzy" in re.split(r"[\s,]+", text)
        elif text and not text.startswith("#") and not entry.problem:
            _add_line(entry, text, number, problem)
    yield from _records(entry, path)


def _add_line(entry: _Entry, text: str, number: int, problem: str) -> None:
    found = _LINE.fullmatch(text)
    keyword = found[1] or entry.keyword if found else ""
    if problem or not found or not keyword:
        entry.problem, entry.line = problem or "no line of a .po file", number
        return
    if keyword == "msgid" or not entry.texts:
        entry.line = entry.line if keyword in entry.texts else number
    entry.keyword = keyword
    entry.texts[keyword] = entry.texts.get(keyword, "") + _ESCAPE.sub(_unescape, found[2][1:-1])


def _unescape(found: re.Match[str]) -> str:
    return _ESCAPED.get(found[1], found[1])


def _records(entry: _Entry, path: str) -> Iterator[Record | Fault]:
    if entry.problem:
        yield Fault(f"{path}:{entry.line}", entry.problem)
        return
    texts = entry.texts
    source, target = texts.get("msgid"), texts.get("msgstr", texts.get("msgstr[0]"))
    if texts and (source is None or target is None):
        yield Fault(f"{path}:{entry.line}", f"an entry without {'msgid' if source is None else 'msgstr'}")
    elif source and target and not entry.is_fuzzy:  # an empty msgid is the file's header
        yield Record({"source": source, "target": target}, f"{path}:{entry.line}")
