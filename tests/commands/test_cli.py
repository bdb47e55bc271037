"""The command line as a program of its own."""

from tests.conftest import run_program, scaletrain

CLI = ("-c", "from scaletrain.cli import main; main()")


def test_help_names_every_command_and_is_quick_to_import() -> None:
    done = run_program("-X", "importtime", *CLI, "--help")
    assert done.code == 0
    for command in ("prepare", "export", "generate", "evaluate", "demo"):
        assert command in done.out
    assert " torch\n" not in done.err, "--help must not import torch"
    assert " transformers\n" not in done.err


def test_version() -> None:
    assert scaletrain("--version").out.startswith("scaletrain 0.")


def test_a_fault_of_the_input_is_one_line_and_exit_code_2() -> None:
    done = run_program(*CLI, "export", "nowhere", "out")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: nowhere is not a folder: give a run, a checkpoint or a Hugging Face folder\n"
