"""Guides work when they are followed: values in commands are valid, plans run, the first hour is walked as written."""

import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from scaletrain.cli import UsageError, app
from scaletrain.config.deepspeed import settle
from scaletrain.config.load import load_with_deepspeed
from scaletrain.errors import EXIT_STOPPED, ConfigError
from tests.conftest import ROOT
from tests.test_docs import FENCE, OVERRIDE, PAGES, commands, fenced

HOUR = ROOT / "docs" / "first-hour.md"
RECIPE = "launch/recipes/"
PLACEHOLDER = re.compile(r"^[A-Z_]{2,}$|[\[\]]|\$\(|\.\.\.")
MISTAKES = {"optim.lr=fast"}  # which a guide makes on purpose


def with_a_recipe() -> Iterator[tuple[Path, list[str]]]:
    """Each command of a guide that names a shipped recipe."""
    for page in PAGES:
        for words in commands(page):
            if any(word.startswith(RECIPE) for word in words) and not MISTAKES & set(words):
                yield page, words


def called(page: Path, words: list[str]) -> str:
    return f"{page.name}: {' '.join(words)}"


def test_values_of_commands_are_valid() -> None:
    wrong = []
    for page, words in with_a_recipe():
        recipe = ROOT / next(word for word in words if word.startswith(RECIPE))
        config = words[words.index("--deepspeed_config") + 1] if "--deepspeed_config" in words else None
        try:
            settle(*load_with_deepspeed(recipe, [word for word in words if OVERRIDE.match(word)], config))
        except ConfigError as error:
            wrong.append(f"{called(page, words)}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_read_by_the_command_line(page: Path) -> None:
    """What is needed is there, and options' values are of their types; not where a word stands for the reader's own."""
    known = typer.main.get_group(app).commands
    wrong = []
    for words in fenced(page):
        if words[0] == "scaletrain" and not any(PLACEHOLDER.search(word) for word in words):
            try:
                known[words[1]].make_context(words[1], words[2:])
            except UsageError as error:
                wrong.append(f"{' '.join(words)}: {error.format_message()}")
    assert not wrong, "\n".join(wrong)


def test_plans_of_guides_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plans = [one for one in with_a_recipe() if one[1][:2] == ["scaletrain", "plan"] and "--calibrate" not in one[1]]
    assert len(plans) > 3
    for page, words in plans:
        arguments = [str(ROOT / word) if word.startswith(RECIPE) else word for word in words[1:]]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{called(page, words)}: {result.output}"
        if "--write" in words:
            assert (tmp_path / words[words.index("--write") + 1]).stat().st_size
        else:
            assert "\nfits" in result.output


def lines_of(page: Path) -> list[str]:
    """The commands of a page, as a person copies them, line by line."""
    return [line for block in FENCE.findall(page.read_text(encoding="utf-8")) for line in block.splitlines() if line]


@pytest.mark.slow
@pytest.mark.real
def test_first_hour(tmp_path: Path) -> None:
    """Every line in its order, in a clone with its own environment. Fifteen minutes, the installation among them."""
    clone = tmp_path / "scaletrain"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment = kept | {"PATH": f"{clone / '.venv' / 'bin'}:{os.environ['PATH']}"}
    texts = clone / "texts"
    texts.mkdir()
    for source in Path(sysconfig.get_path("stdlib")).glob("*.py"):
        shutil.copy(source, texts / f"{source.stem}.txt")
    codes: dict[str, int] = {}
    lines = iter(lines_of(HOUR))
    for line in lines:
        if line.startswith(("git clone", "source ")):
            continue
        if "supervise" in line:
            codes[line], again = stopped(line, clone, environment, [next(lines), next(lines)])
            assert again == 0
        else:
            codes[line] = run(line, clone, environment)
    wanted = {line: EXIT_STOPPED if "supervise" in line else 2 if is_mistake(line) else 0 for line in codes}
    assert codes == wanted
    assert {"report.html"} <= {path.name for path in (clone / "demo").iterdir()}


def is_mistake(line: str) -> bool:
    return bool(MISTAKES & set(shlex.split(line, comments=True))) or "demo/dta" in line


def run(line: str, folder: Path, environment: Mapping[str, str]) -> int:
    return subprocess.run(["bash", "-c", line], cwd=folder, env=environment, check=False).returncode


def stopped(line: str, folder: Path, environment: Mapping[str, str], meanwhile: list[str]) -> tuple[int, int]:
    """A run that other lines, in a second terminal, watch and stop; its exit code, and that of going on with it."""
    watch, stop = meanwhile
    with subprocess.Popen(["bash", "-c", line], cwd=folder, env=environment) as training:
        metrics = folder / "runs" / "first" / "metrics.jsonl"
        deadline = time.monotonic() + 300
        while not (metrics.exists() and metrics.stat().st_size) and training.poll() is None:
            assert time.monotonic() < deadline, "no step was logged in five minutes"
            time.sleep(0.5)
        assert run(watch, folder, environment) == 0  # one look, where there is no terminal
        assert run(stop, folder, environment) == 0
    return training.returncode, run(line, folder, environment)
