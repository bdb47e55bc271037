"""The command line as a program of its own."""

import errno
import os
import re

import pytest

from scaletrain import cli
from tests.conftest import run_program, scaletrain

CLI = ("-c", "from scaletrain.cli import main; main()")


def test_help_names_every_command_and_is_quick_to_import() -> None:
    done = run_program("-X", "importtime", *CLI, "--help")
    assert done.code == 0
    for command in (
        "prepare",
        "plan",
        "export",
        "generate",
        "evaluate",
        "audit",
        "supervise",
        "submit",
        "status",
        "cancel",
        "verify",
        "doctor",
        "demo",
    ):
        assert command in done.out
    assert " torch\n" not in done.err, "--help must not import torch"
    assert " transformers\n" not in done.err


def test_version() -> None:
    assert scaletrain("--version").out.startswith("scaletrain 0.")


def test_a_fault_of_the_input_is_one_line_and_exit_code_2() -> None:
    done = run_program(*CLI, "export", "nowhere", "out")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: nowhere is not a folder: give a run, a checkpoint or a Hugging Face folder\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("plan",), "Missing argument 'recipe': `scaletrain plan --help` lists what it takes"),
        (("plam",), "No such command 'plam'.*: `scaletrain --help` lists what it takes"),
        (("plan", "x", "--nodes", "two"), "Invalid value for '--nodes': .*: `scaletrain plan --help` lists"),
        (("plan", "x", "--node", "2"), "No such option.*: `scaletrain plan --help` lists"),
        (
            ("prepare", "--input", "a.txt", "b.txt", "--output", "x"),
            r"Got unexpected extra argument\(?s?\)? \(b.txt\): quote a pattern, so that the shell leaves it whole",
        ),
        (
            ("prepare", "--output", "x", *map(str, range(10**5, 10**5 + 500))),
            r"Got unexpected .{150,190}\.\.\.: quote a pattern",
        ),
    ],
)
def test_a_command_that_is_not_understood_is_one_line(words: tuple[str, ...], line: str) -> None:
    done = run_program(*CLI, *words)
    assert (done.code, done.out) == (2, "")
    assert re.match(f"error: {line}", done.err)
    assert done.err.count("\n") == 1


def test_nothing_given_shows_the_help() -> None:
    done = run_program(*CLI)
    assert done.code == 2
    assert "prepare" in done.out + done.err


@pytest.mark.parametrize("code", cli.REMEDIES)
def test_what_the_file_system_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    def app(**settings: object) -> None:
        raise OSError(code, os.strerror(code), "some/path")

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: some/path: {os.strerror(code)}: {cli.REMEDIES[code]}\n"


def test_any_other_fault_of_the_system_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    def app(**settings: object) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(OSError, match="Bad file descriptor"):
        cli.main()
