"""Guides say what is there: links lead somewhere, keys of the recipe and all parts of commands exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

from scaletrain.cli import app
from scaletrain.config.finetune_schema import FinetuneRecipe
from scaletrain.config.schema import Recipe
from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("ds_configs/*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SUFFIXES = {"conll", "csv", "json", "jsonl", "md", "parquet", "py"}  # of files that are named like a section
KEY = re.compile(r"`(?:(run|data|model|train|optim|checkpoint|guard|evaluate|log|adapter|task)\.([a-z_]+))[`:=. ]")


def headings(page: Path) -> set[str]:
    """Anchors as GitHub makes them."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link or link.startswith("mailto:"):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{page.name}: {link} is not there"
        if anchor:
            assert anchor in headings(target), f"{page.name}: {link}: no such heading"


def keys(*recipes: type[BaseModel]) -> Iterator[str]:
    for recipe in recipes:
        for name, field in recipe.model_fields.items():
            section = field.annotation
            if isinstance(section, type) and issubclass(section, BaseModel):
                yield from (f"{name}.{leaf}" for leaf in section.model_fields)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_of_the_recipe_exist(page: Path) -> None:
    known = set(keys(Recipe, FinetuneRecipe))
    told = {f"{section}.{leaf}" for section, leaf in KEY.findall(page.read_text(encoding="utf-8"))}
    wrong = sorted(name for name in told - known if name.partition(".")[2] not in SUFFIXES)
    assert not wrong, f"{page.name}: {', '.join(wrong)}"


FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAMS = tuple(f"{name} " for name in ("scaletrain", "deepspeed", "torchrun", "python", "sbatch", "srun", "make"))
FILE = re.compile(r"^(launch|slurm|ds_configs|benchmarks|tests|scaletrain)/[\w./-]+$")
OVERRIDE = re.compile(r"^([a-z_]+)\.([a-z_.]+)=")


def commands(page: Path) -> list[list[str]]:
    """The words of each command in the page's blocks, and of this project's in its lines."""
    text = page.read_text(encoding="utf-8")
    return [line.split() for line in re.findall(r"`(scaletrain [a-z][^`]*)`", FENCE.sub("", text))] + fenced(page)


def fenced(page: Path) -> list[list[str]]:
    """The words of each command in the page's blocks, without comments; what continues on a new line is one command."""
    found = []
    for block in FENCE.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            parts = line.removeprefix("$ ").split("&&")
            found += [shlex.split(part, comments=True) for part in parts if part.strip().startswith(PROGRAMS)]
    return found


def wrong_in(words: list[str]) -> list[str]:
    """What of a command is not there: files of the repository, targets of make, subcommands, options, recipe keys."""
    wrong = [word for word in words if FILE.match(word) and not (ROOT / word).exists()]
    if words[0] == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
        return wrong + [word for word in words[1:] if re.match(r"[a-z]", word) and word not in targets]
    recipe_keys = set(keys(Recipe, FinetuneRecipe))
    overrides = [match for word in words if (match := OVERRIDE.match(word))]
    wrong += [match[0] for match in overrides if f"{match[1]}.{match[2].partition('.')[0]}" not in recipe_keys]
    if words[0] == "scaletrain":
        subcommand = typer.main.get_group(app).commands.get(words[1])
        if subcommand is None:
            return [*wrong, words[1]]
        options = {name for one in subcommand.params for name in (*one.opts, *one.secondary_opts)} | {"--help"}
        own = words[2 : words.index("--launch") + 1 if "--launch" in words else None]
        given = [word.partition("=")[0] for word in own if word.startswith("-") and word != "-"]
        wrong += [option for option in given if option not in options]
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_what_is_there(page: Path) -> None:
    wrong = [f"{' '.join(words)}: {', '.join(bad)}" for words in commands(page) if (bad := wrong_in(words))]
    assert not wrong, "\n".join(wrong)


def test_wrong_commands_are_found() -> None:
    for line, wrong in (
        ("scaletrain prepere --input x", ["prepere"]),
        ("scaletrain prepare --imput x", ["--imput"]),
        ("deepspeed launch/pretrian.py recipe.yaml train.max_stepz=3", ["launch/pretrian.py", "train.max_stepz="]),
        ("make demonstration", ["demonstration"]),
        ("scaletrain verify launch/recipes/pretrain-1.3b.yaml --ranks 2 --launch 'srun --x' data.path=y", []),
    ):
        assert wrong_in(shlex.split(line)) == wrong
