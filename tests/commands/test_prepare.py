"""`scaletrain prepare` as a person types it: what it prints, what it makes, how it ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from scaletrain.commands.prepare import _unescape
from scaletrain.data.shards import open_dataset


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    argv = ["scaletrain", "prepare", *map(str, arguments)]
    code = f"import sys; sys.argv = {argv!r}; from scaletrain.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_prepare_says_what_it_made(texts: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "latin.txt"
    bad.write_bytes(b"first\nna\xefve\n")
    inputs = [part for path in (*texts, bad) for part in ("--input", path)]
    done = run(*inputs, "--output", tmp_path / "set", "--train-tokenizer", 500, "--validation", 0.05, "--workers", 2)
    assert (done.returncode, done.stdout) == (0, "")
    dataset = open_dataset(tmp_path / "set")
    lines = {line.split()[0]: line for line in done.stderr.splitlines()}
    assert f"7 documents, {dataset.tokens('train'):,} tokens, " in lines["train"]
    assert (
        f"{dataset.documents('validation')} documents, {dataset.tokens('validation'):,} tokens, " in lines["validation"]
    )
    assert "byte-bpe-500: 500 tokens (uint16), eos 0" in lines["tokenizer"]
    assert "tokens/byte, " in lines["rate"]
    assert "MB/s" in lines["rate"]
    assert "1 invalid byte sequences became U+FFFD, at:" in lines["faults"]
    assert f"             {bad}:2 byte 0xef" in done.stderr
    assert lines["dataset"].split(maxsplit=1)[1] == str(tmp_path / "set")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--train-tokenizer", 500],
            "error: input nope.txt does not exist (a dataset of the Hugging Face hub is written hf:",
        ),
        ([], "error: give one of --tokenizer (a folder, file or name) and --train-tokenizer (a vocabulary size)"),
    ],
)
def test_fault_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[object], line: str) -> None:
    done = run("--input", "nope.txt", "--output", tmp_path / "set", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_separator_understands_escapes() -> None:
    assert _unescape(None) is None
    assert _unescape(r"\n\n") == "\n\n"
    assert _unescape(r"—\t\\n") == "—\t\\n"
