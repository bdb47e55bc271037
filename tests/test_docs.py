"""Guides say what is there: links lead somewhere, and keys of the recipe exist."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

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
