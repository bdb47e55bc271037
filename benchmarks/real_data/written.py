"""Texts that answer texts: questions on Wikipedia, translations, summaries and conversations."""

import html
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks.real_data.archive import members, only_member
from benchmarks.real_data.files import Counts, write_jsonl, write_squad, write_tsv
from benchmarks.real_data.split import split

SHORTEST, LONGEST = 3, 200  # characters of a segment to translate
HELP = r"\./usr/share/libreoffice/help/[^/]+/text/.*\.html"
# Files in which a conversation is a question with several answers to it, not turns.
ALTERNATIVES = ("computers", "emotion")
ROLES = ("user", "assistant")


def write_squad_wiki(archives: list[Path], folder: Path) -> Counts:
    found = json.loads(only_member(archives[0], r".*/squad_shifts/new_wiki_v1\.0\.json"))
    articles = [{"title": article["title"], "paragraphs": article["paragraphs"]} for article in found["data"]]
    sides = split(articles, lambda article: str(article["title"]))
    return write_squad(folder, sides, version=found["version"], canary=found["canary"])


def write_help(archives: list[Path], folder: Path) -> Counts:
    english, german = (dict(_pages(archive)) for archive in archives)
    return write_tsv(folder, split(pair_segments(english, german), lambda pair: pair[0]), ("source", "target"))


def _pages(archive: Path) -> Iterator[tuple[str, str]]:
    for name, data in members(archive, HELP):
        yield name.split("/text/", 1)[1], data.decode("utf-8", errors="replace")


def pair_segments(sources: dict[str, str], targets: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Segments with the same id in the pages of the same name, those left untranslated aside."""
    for name in sorted(sources.keys() & targets.keys()):
        ours, theirs = read_segments(sources[name]), read_segments(targets[name])
        for key, source in ours.items():
            pair = (source, theirs.get(key, ""))
            if pair[0] != pair[1] and all(SHORTEST <= len(text) <= LONGEST for text in pair):
                yield pair


def read_segments(page: str) -> dict[str, str]:
    """The text of each paragraph and heading that has an id."""
    found = re.finditer(r'(?s)<(p|h\d)\b[^>]*\bid="([a-z_]*\d+)"[^>]*>(.*?)</\1>', page)
    return {match[2]: " ".join(html.unescape(re.sub(r"<[^>]+>", "", match[3])).split()) for match in found}


def write_descriptions(archives: list[Path], folder: Path) -> Counts:
    rows = read_descriptions(archives[0].read_text(encoding="utf-8"))
    # Packages of one source share their first paragraph, and differ in the last.
    return write_jsonl(folder, split(rows, lambda row: row["document"].split("\n\n")[0]))


def read_descriptions(text: str) -> Iterator[dict[str, str]]:
    """A stanza's description: the first line is the short one, `.` stands for an empty line of the long one."""
    for stanza in text.split("\n\n"):
        found = re.search(r"^Description-en: *(.*)\n((?: .*(?:\n|$))+)", stanza, re.MULTILINE)
        if found:
            lines = ["" if line == " ." else line[1:] for line in found[2].splitlines()]
            yield {"document": _unwrap(lines), "summary": found[1].strip()}


def _unwrap(lines: list[str]) -> str:
    """Lines of a paragraph in one; those that begin with a space (lists, examples) stay."""
    text = "\n".join(line.rstrip() for line in lines)
    return re.sub(r"(?<=\S)\n(?=[^\s*-])", " ", text).strip()


def write_conversations(archives: list[Path], folder: Path) -> Counts:
    files = members(archives[0], r"chatterbot_corpus/data/english/[^/]+\.yml")
    sides = split(read_conversations(files), lambda row: str(row["messages"][0]["content"]))
    return write_jsonl(folder, sides)


def read_conversations(files: Iterable[tuple[str, bytes]]) -> Iterator[dict[str, Any]]:
    """User and assistant in turn; a last question without an answer is left out."""
    for name, data in sorted(files):
        for turns in yaml.safe_load(data)["conversations"]:
            if not isinstance(turns, list):
                continue  # one entry is a bare text
            question, *answers = (" ".join(str(turn).split()) for turn in turns)
            several = Path(name).stem in ALTERNATIVES
            for told in [[question, answer] for answer in answers] if several else [[question, *answers]]:
                answered = told[: len(told) // 2 * 2]
                if answered and all(answered):
                    yield {"messages": [{"role": ROLES[at % 2], "content": said} for at, said in enumerate(answered)]}
