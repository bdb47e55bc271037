"""Texts with a label or a number: spam and ham, and how much snippets of film reviews like the film."""

import email
import email.header
import html
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from email.message import Message
from pathlib import Path
from typing import Any

from benchmarks.real_data.archive import members, only_member, tar_members
from benchmarks.real_data.files import Counts, write_jsonl
from benchmarks.real_data.split import Split, drop_near_copies, split

LONGEST = 2000  # characters of a mail
CLEAR = 0.5  # a snippet is for or against the film from this score on, of 4


def write_spam(archives: list[Path], folder: Path) -> Counts:
    files = members(archives[0], r"package/data/(?:easy-ham|hard-ham|spam)-\d/[^/]+\.txt")
    return _write_labelled(folder, drop_near_copies(read_mails(files), _text))


def read_mails(files: Iterable[tuple[str, bytes]]) -> Iterator[dict[str, Any]]:
    for name, data in sorted(files):
        message = email.message_from_bytes(data)
        text = f"{_subject(message)}\n{_body(message)}".strip()[:LONGEST].strip()
        if text:
            yield {"text": text, "label": "spam" if "/spam-" in name else "ham"}


def _subject(message: Message) -> str:
    pieces = email.header.decode_header(message.get("Subject", ""))
    decoded = (_decode(piece, charset) if isinstance(piece, bytes) else piece for piece, charset in pieces)
    return " ".join("".join(decoded).split())


def _body(message: Message) -> str:
    """The plain text, or else that of the HTML."""
    parts = {kind: [part for part in message.walk() if part.get_content_type() == kind] for kind in _KINDS}
    plain, marked = ("\n".join(map(_payload, parts[kind])) for kind in _KINDS)
    if not plain.strip():
        marked = re.sub(r"(?is)<(script|style)\b.*?</\1>|<!--.*?-->", " ", marked)
        plain = html.unescape(re.sub(r"(?s)<[^>]*>", " ", marked))
    lines = (" ".join(line.split()) for line in plain.splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


_KINDS = ("text/plain", "text/html")


def _payload(part: Message) -> str:
    data = part.get_payload(decode=True)
    return _decode(data, part.get_content_charset()) if isinstance(data, bytes) else ""


def _decode(data: bytes, charset: str | None) -> str:
    try:
        return data.decode(charset or "latin-1")
    except (LookupError, UnicodeDecodeError):  # spam names charsets that it does not use, or that no one knows
        return data.decode("latin-1")


def write_film(archives: list[Path], folder: Path) -> Counts:
    rows = (
        {"text": text, "label": "positive" if score > 0 else "negative"}
        for text, score in read_scores(_snippets(archives[0]))
        if abs(score) >= CLEAR
    )
    return _write_labelled(folder, rows)


def write_film_scores(archives: list[Path], folder: Path) -> Counts:
    rows = ({"text": text, "label": round(score, 4)} for text, score in read_scores(_snippets(archives[0])))
    return write_jsonl(folder, split(rows, _text))


def _snippets(archive: Path) -> str:
    inner = only_member(archive, r".*/hutto_ICWSM_2014\.tar\.gz")
    ((_, data),) = tar_members(io.BytesIO(inner), r".*/movieReviewSnippets_GroundTruth\.txt")
    return data.decode("utf-8", errors="replace")


def read_scores(table: str) -> Iterator[tuple[str, float]]:
    """Text and mean score (-4 to 4) of each line `number TAB score TAB text`."""
    for line in table.splitlines():
        if line.strip():
            _, score, text = line.split("\t", 2)
            yield text.strip(), float(score)


def _write_labelled(folder: Path, rows: Iterable[dict[str, Any]]) -> Counts:
    sides: Split[dict[str, Any]] = split(rows, _text)
    labels = {side: dict(Counter(row["label"] for row in part)) for side, part in sides.sides()}
    return {**write_jsonl(folder, sides), "labels": labels}


def _text(row: dict[str, Any]) -> str:
    text: str = row["text"]
    return text
