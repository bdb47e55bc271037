"""`scaletrain prepare` as a person types it: what it prints, what it makes, how it ends."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
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
    assert "1 invalid byte sequences became U+FFFD (iconv converts to UTF-8; --encoding-errors fail" in lines["faults"]
    assert f"             {bad}:2 byte 0xef" in done.stderr
    assert lines["dataset"].split(maxsplit=1)[1] == str(tmp_path / "set")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--train-tokenizer", 500],
            "error: input nope.txt does not exist (a dataset of the Hugging Face hub is written hf:",
        ),
        (["--part", "3/2"], "error: --part 3/2 is not I/N with 1 <= I <= N: the first of sixteen parts is --part 1/16"),
        (
            ["--part", "1/2", "--merge"],
            "error: --merge and --part 1/2 do not go together: make all parts, then --merge",
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


def test_duplicates_are_told_with_their_share(texts: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.py"
    shutil.copy(texts[0], copy)
    inputs = [part for path in (*texts, copy) for part in ("--input", path)]
    done = run(*inputs, "--output", tmp_path / "set", "--train-tokenizer", 500, "--drop-duplicates")
    assert done.returncode == 0, done.stderr
    assert "duplicates 1 of 7 documents (14.29%) were left out" in done.stderr


SCRIPT = Path(__file__).parents[2] / "slurm" / "prepare.sbatch"


def sbatch(folder: Path, *arguments: object, **env: object) -> "subprocess.CompletedProcess[str]":
    """Runs the script as SLURM does: a copy in a spool folder, started there with the job's variables."""
    spool = folder / "spool"
    spool.mkdir(exist_ok=True)
    script = Path(shutil.copy(SCRIPT, spool / "slurm_script"))
    program = Path(sys.executable).parent / "scaletrain"
    variables = {"SLURM_SUBMIT_DIR": folder, "SCALETRAIN": program, "SLURM_CPUS_PER_TASK": 1, **env}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PREPARE_"))}
    return subprocess.run(
        ["bash", script, *map(str, arguments)],
        cwd=spool,
        env={**kept, **{name: str(value) for name, value in variables.items() if value is not None}},
        capture_output=True,
        text=True,
        check=False,
    )


def array(number: int, first: int, last: int, count: int) -> dict[str, object]:
    names = ("TASK_ID", "TASK_MIN", "TASK_MAX", "TASK_COUNT")
    return {f"SLURM_ARRAY_{name}": value for name, value in zip(names, (number, first, last, count), strict=True)}


def test_job_array_and_merge_make_the_dataset_of_one_command(texts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "my texts").mkdir()
    for text in texts:
        shutil.copy(text, tmp_path / "my texts")
    options = ["--input", "my texts/*.py", "--train-tokenizer", 500, "--shard-tokens", 50_000]
    for number in (1, 2):
        done = sbatch(tmp_path, *options, "--output", "parts", **array(number, 1, 2, 2))
        assert (done.returncode, f"part {number}/2 is finished" in done.stderr) == (0, True), done.stderr
    done = sbatch(tmp_path, *options, "--output", "parts", PREPARE_PARTS=2, **array(2, 2, 2, 1))
    assert "part 2/2 is finished: " in done.stderr  # one task of the array again
    assert "0.0 MB of text encoded now" in done.stderr
    for arguments in (["parts", "--merge"], ["whole"]):
        done = sbatch(tmp_path, *options, "--output", *arguments)
        assert done.returncode == 0, done.stderr
    found = [{file.name: file.read_bytes() for file in (tmp_path / name).rglob("*.*")} for name in ("parts", "whole")]
    assert found[0] == found[1]
    assert len(found[0]) > 5


def test_array_that_does_not_tell_the_number_of_parts_is_refused(tmp_path: Path) -> None:
    for first, last, count in ((3, 7, 2), (0, 3, 4), (3, 3, 1), (1, 7, 2)):
        done = sbatch(tmp_path, **array(first, first, last, count))
        line = f"error: the array is not 1-N but {count} task(s) of {first}-{last}: set PREPARE_PARTS to N\n"
        assert (done.returncode, done.stderr) == (2, line)


def test_script_names_the_program_it_misses(tmp_path: Path) -> None:
    done = sbatch(tmp_path, SCALETRAIN=None, PATH="/usr/bin:/bin")
    line = "error: scaletrain is not on the PATH: activate its venv, or set SCALETRAIN\n"
    assert (done.returncode, done.stderr) == (2, line)
    program = tmp_path / ".venv" / "bin" / "scaletrain"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    program.chmod(0o755)
    done = sbatch(tmp_path, "--input", "a b", SCALETRAIN=None, SLURM_CPUS_PER_TASK=7, **array(3, 1, 4, 4))
    assert done.stdout == "prepare|--workers|7|--input|a b|--part|3/4|"


def test_another_tools_tokens_are_converted(texts: list[Path], tmp_path: Path) -> None:
    source, made, taken = texts[4], tmp_path / "made", tmp_path / "taken"
    assert run("--input", source, "--output", made, "--train-tokenizer", 300, "--validation", 0).returncode == 0
    tokens = np.load(made / "tokens-00000.npy")
    tokens.tofile(tmp_path / "train.bin")  # as nanoGPT writes them
    convert = ("--from", tmp_path / "train.bin", "--output", taken, "--tokenizer", made / "tokenizer")
    done = run(*convert, "--validation", 0, "--dtype", "uint16")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (np.load(taken / "tokens-00000.npy") == tokens).all()
    both = run(*convert, "--input", source)
    assert both.returncode == 2
    assert "error: --from does not go with --input, --part and --merge: give --from alone" in both.stderr
    alone = run("--input", source, "--output", tmp_path / "x", "--dtype", "uint16", "--train-tokenizer", 300)
    assert alone.returncode == 2
    assert "error: --dtype uint16 is for --from only: leave it out" in alone.stderr
