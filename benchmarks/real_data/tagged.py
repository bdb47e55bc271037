"""Sentences with a tag for each word: parts of speech of the Brown corpus, and names in Japanese."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.real_data.archive import members, only_member
from benchmarks.real_data.files import Counts, Sentence, write_conll
from benchmarks.real_data.split import split

# Petrov, Das and McDonald 2012, "A Universal Part-of-Speech Tagset": their en-brown.map, for base tags.
_UNIVERSAL = {
    "NOUN": "nn nn$ nns nns$ np np$ nps nps$ nr nr$ nrs pn pn$ cd$",
    "VERB": "be bed bedz beg bem ben ber bez do dod doz hv hvd hvg hvn hvz md vb vbd vbg vbn vbz",
    "ADP": "in cs",
    "DET": "abx at dt dt$ dti dts dtx pp$ wdt wp$",
    "ADJ": "ap jj jjr jjs jjt od",
    ".": ". , : ( ) -- ' '' ``",
    "ADV": "* ql qlp rb rbr rbt rn wql wrb",
    "PRON": "pp$$ ppl ppls ppo pps ppss wpo wps",
    "CONJ": "cc",
    "PRT": "abl abn ap$ ex jj$ rb$ rp to uh",
    "NUM": "cd",
    "X": "fw nil",
}
UNIVERSAL = {base: tag for tag, bases in _UNIVERSAL.items() for base in bases.split()}


def write_brown(archives: list[Path], folder: Path) -> Counts:
    return _write_sentences(folder, read_brown(members(archives[0], r"package/c[a-r]\d\d")))


def read_brown(files: Iterable[tuple[str, bytes]]) -> Iterator[Sentence]:
    """A sentence a line, a `word/tag` a word."""
    for _, data in sorted(files):
        for line in data.decode("latin-1").splitlines():
            pairs = (pair.rsplit("/", 1) for pair in line.split())
            if sentence := [(word, universal_tag(tag)) for word, tag in pairs]:
                yield sentence


def universal_tag(tag: str) -> str:
    """`np-tl` (in a title), `ppss+md` (two words in one) and `md*` (negated) count by their first part."""
    base = re.match(r"--|[^-+]+", tag)
    assert base is not None, f"{tag!r} is a Brown tag"
    return UNIVERSAL[base.group() if base.group() == "*" else base.group().rstrip("*")]


def write_japanese_names(archives: list[Path], folder: Path) -> Counts:
    table = only_member(archives[0], r".*/hironsan/corpus/iob_sents\.txt").decode("utf-8")
    return _write_sentences(folder, read_columns(table))


def read_columns(table: str) -> Iterator[Sentence]:
    """First and last column of each line; a blank line ends a sentence. Spaces inside of names are left out."""
    for block in re.split(r"\n[ \t\r]*\n", table):
        rows = [line.rstrip("\r").split("\t") for line in block.split("\n")]
        if sentence := [(row[0], row[-1]) for row in rows if row[0].strip()]:
            yield sentence


def _write_sentences(folder: Path, sentences: Iterable[Sentence]) -> Counts:
    sides = split(sentences, lambda sentence: " ".join(word for word, _ in sentence))
    labels = {
        side: dict(Counter(tag for sentence in part for _, tag in sentence).most_common())
        for side, part in sides.sides()
    }
    return {**write_conll(folder, sides), "labels": labels}
