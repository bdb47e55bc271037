"""The layers and doors of the code: who may import whom, read from the source files themselves.

launch, cli, benchmarks -> commands -> assemble -> engine -> tasks|planner -> data|model|optim|track|cluster
-> runtime -> config -> errors
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    ("launch", "cli", "benchmarks"),
    ("commands",),
    ("assemble",),
    ("engine",),
    ("tasks", "planner"),
    ("data", "model", "optim", "track", "cluster"),
    ("runtime",),
    ("config",),
    ("errors",),
]
HEIGHT = {part: -height for height, layer in enumerate(LAYERS) for part in layer}
# Imported only there, wherever in a file the import stands.
DOORS = {"deepspeed": {"engine"}, "torch.distributed": {"runtime"}}
# Parts that a login node runs: not even inside a function.
_HEAVY = {"torch", "deepspeed", "transformers"}
LIGHT = {"config": _HEAVY, "errors": _HEAVY, "planner": _HEAVY}
# Not when the part is imported; inside a function it may be.
LAZY = {"runtime": {"transformers"}, "cluster": {"transformers"}}
VAGUE = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
SOURCES = sorted(
    path
    for folder in ("scaletrain", "launch", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
    if "peers" not in path.relative_to(ROOT).parts  # other people's trainers, run as they are
)


def part_of(path: str) -> str:
    """The part that a file (relative to the repository) belongs to; "" for scaletrain/__init__.py."""
    first, *rest = Path(path).parts
    return first if first != "scaletrain" else Path(rest[0]).stem.replace("__init__", "")


def imports(tree: ast.Module, path: str) -> Iterator[tuple[str, int, bool]]:
    """Dotted name, line and whether it happens on import, for each module that a file names."""
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    package = list(Path(path).with_suffix("").parts)
    for node in ast.walk(tree):
        at_import = id(node) not in inside
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{module}.{alias.name}", node.lineno, at_import) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            yield f"torch.{node.attr}", node.lineno, at_import  # torch.distributed.all_reduce(...)


def under(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def violations(source: str, path: str) -> Iterator[str]:
    """Every rule that the file `path` (relative to the repository) with this source breaks."""
    tree = ast.parse(source)
    part = part_of(path)
    if source and ast.get_docstring(tree) is None:
        yield f"{path}:1: the first line does not say what the file is for"
    elif source and not source.lstrip("\ufeff").startswith(('"""', 'r"""', "#!")):
        yield f"{path}:1: the docstring does not stand on the first line"
    if Path(path).name in VAGUE:
        yield f"{path}: name a file after its one noun"
    if part == "launch" and len(source.splitlines()) >= 20:
        yield f"{path}: a launch script has under 20 lines, this one {len(source.splitlines())}"
    for name, line, at_import in imports(tree, path):
        place = f"{path}:{line}"
        for module, allowed in DOORS.items():
            if under(name, module) and part not in allowed:
                yield f"{place}: {module} is imported only in {', '.join(allowed)}"
        for module in LIGHT.get(part, set()) | (LAZY.get(part, set()) if at_import else set()):
            if under(name, module):
                yield f"{place}: {part} must not import {module}"
        words = name.split(".")
        other = words[1] if words[0] == "scaletrain" and len(words) > 1 else words[0]
        if other not in HEIGHT or (words[0] != "scaletrain" and other not in LAYERS[0]) or other == part:
            continue
        if part not in HEIGHT or HEIGHT[other] >= HEIGHT[part]:
            yield f"{place}: {part or 'scaletrain'} must not import {other}: imports point down the layers"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_file_keeps_the_layers_and_the_doors(path: Path) -> None:
    assert list(violations(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))) == []


def test_every_part_stands_in_the_layers() -> None:
    parts = {part_of(str(path.relative_to(ROOT))) for path in SOURCES} - {""}
    assert parts <= set(HEIGHT), "give the new part its place in LAYERS"


@pytest.mark.parametrize(
    ("path", "body", "line"),
    [
        ("scaletrain/data/x.py", "import deepspeed", "deepspeed is imported only in engine"),
        (
            "scaletrain/tasks/x.py",
            "def f():\n    from deepspeed.ops import adam",
            "deepspeed is imported only in engine",
        ),
        ("scaletrain/engine/x.py", "import torch.distributed as dist", "torch.distributed is imported only in runtime"),
        ("scaletrain/engine/x.py", "from torch import distributed", "torch.distributed is imported only in runtime"),
        (
            "scaletrain/engine/x.py",
            "import torch\ntorch.distributed.barrier()",
            "torch.distributed is imported only in",
        ),
        ("scaletrain/config/x.py", "def f():\n    import torch", "config must not import torch"),
        ("scaletrain/config/x.py", "from transformers import AutoModel", "config must not import transformers"),
        ("scaletrain/runtime/x.py", "import transformers", "runtime must not import transformers"),
        ("scaletrain/data/x.py", "from scaletrain.model import gpt", "data must not import model"),
        ("scaletrain/data/x.py", "from ..model import gpt", "data must not import model"),
        ("scaletrain/runtime/x.py", "from scaletrain.data.rows import Rows", "runtime must not import data"),
        ("scaletrain/engine/x.py", "def f():\n    from scaletrain import assemble", "engine must not import assemble"),
        ("scaletrain/errors.py", "import scaletrain.config.load", "errors must not import config"),
        ("scaletrain/assemble/x.py", "from scaletrain.commands.plan import main", "assemble must not import commands"),
        ("scaletrain/__init__.py", "from scaletrain.cli import main", "scaletrain must not import cli"),
        ("scaletrain/cli.py", "import benchmarks.throughput", "cli must not import benchmarks"),
        ("scaletrain/data/utils.py", "x = 1", "name a file after its one noun"),
        ("launch/x.py", "x = 1\n" * 20, "a launch script has under 20 lines, this one 22"),
    ],
)
def test_a_planted_violation_is_caught(path: str, body: str, line: str) -> None:
    assert any(line in found for found in violations(f'"""What it is for."""\n{body}\n', path))


def test_a_file_without_a_first_line_is_caught() -> None:
    assert "does not say what the file is for" in next(violations("x = 1\n", "scaletrain/data/x.py"))
    assert "does not stand on the first line" in next(violations('\n"""Late."""\n', "scaletrain/data/x.py"))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("scaletrain/engine/x.py", "import deepspeed\nfrom scaletrain.runtime import dist\nfrom . import state"),
        ("scaletrain/runtime/dist.py", "import torch.distributed as dist\ndef f():\n    import transformers"),
        (
            "scaletrain/data/x.py",
            "import torch\nfrom scaletrain.data.rows import Rows\nfrom scaletrain.errors import X",
        ),
        ("launch/x.py", "from scaletrain.commands.train import main"),
        ("scaletrain/cli.py", "import scaletrain\nfrom scaletrain.config.load import load_recipe\nimport data"),
    ],
)
def test_what_points_down_is_let_through(path: str, body: str) -> None:
    assert list(violations(f'"""What it is for."""\n{body}\n', path)) == []
