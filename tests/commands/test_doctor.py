"""`scaletrain doctor` run as its users do, on this machine and on hosts behind an `ssh` that stays here."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from scaletrain.cluster.doctor.nodes import parse_hostfile
from scaletrain.data.shards import Dataset
from tests.conftest import Done, scaletrain, write_recipe

# ssh that stays here: the host is the last argument but one, the command the last.
SSH = """\
#!/bin/sh
for last; do host=$words; words=$last; done
[ $host = dead ] && echo "ssh: connect to host dead port 22: No route to host" >&2 && exit 255
{extra}
exec sh -c "$last"
"""


@pytest.fixture(autouse=True)
def no_ops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a build of this machine's user left behind is not the tests' business."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "ops"))


@pytest.fixture
def port() -> str:
    """One that is free, so that no other run is met."""
    with socket.socket() as free:
        free.bind(("", 0))
        return f"--master-port={free.getsockname()[1]}"


def fake_ssh(folder: Path, monkeypatch: pytest.MonkeyPatch, extra: str = "") -> None:
    (folder / "bin").mkdir()
    (folder / "bin" / "ssh").write_text(SSH.format(extra=extra))
    (folder / "bin" / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def hosts(folder: Path, *names: str) -> Path:
    (folder / "hosts").write_text("".join(f"{name} slots=1\n" for name in names))
    return folder / "hosts"


def report(done: Done) -> dict[str, Any]:
    assert done.err == ""
    found: dict[str, Any] = json.loads(done.out)
    return found


def failures(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(f["check"], f["node"], f["what"]) for f in found["findings"] if f["severity"] == "fail"]


def test_this_machine_alone(port: str) -> None:
    done = scaletrain("doctor", port)
    assert (done.code, done.err) == (0, "")
    first, *_, last = done.out.splitlines()
    assert first == f"nodes   1: {os.uname().nodename}"
    assert last.startswith("well    0 failures, ")


def test_a_recipe_here(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "ops"))  # where nothing is built yet
    recipe = write_recipe(tmp_path, dataset, tmp_path / "runs" / "a")
    done = scaletrain("doctor", recipe, port, "deepspeed=ds_configs/zero2-offload.json")
    assert done.code == 0, done.out + done.err
    assert f"note    {tmp_path}/runs/a: " in done.out
    assert "cpu_adam" in done.out
    assert not (tmp_path / "runs").exists()


def test_json_is_one_object_with_the_fields_of_each_finding(dataset: Dataset, tmp_path: Path, port: str) -> None:
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    found = report(scaletrain("doctor", recipe, port, "--json"))
    assert (found["failed"], found["exclude"], found["by"], found["pairs"]) == (False, [], "itself", [])
    assert found["nodes"] == [os.uname().nodename]
    (stored,) = [finding for finding in found["findings"] if finding["check"] == "storage"]
    assert stored.keys() == {"severity", "check", "what", "remedy", "node", "place"}
    assert stored["place"] == str(tmp_path / "run")


def test_a_dataset_that_is_missing_fails_with_exit_code_1(dataset: Dataset, tmp_path: Path, port: str) -> None:
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    done = scaletrain("doctor", recipe, f"data.path={tmp_path}/none", port)
    assert done.code == 1
    assert f"fail    {os.uname().nodename}: dataset {tmp_path}/none is not a folder: make it" in done.out
    assert done.out.splitlines()[-1].startswith("failed  1 failure, ")


def test_two_nodes_by_ssh(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    fake_ssh(tmp_path, monkeypatch)
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    nodes = hosts(tmp_path, "localhost", "127.0.0.1")
    found = report(scaletrain("doctor", recipe, "--hostfile", nodes, port, "--json"))
    assert failures(found) == []
    assert found["by"] == "ssh"
    (pair,) = found["pairs"]
    assert (pair["one"], pair["other"]) == ("localhost", "127.0.0.1")
    assert pair["gbps"] > 0
    assert not (tmp_path / "run").exists()


def test_a_node_that_is_dead_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    fake_ssh(tmp_path, monkeypatch)
    nodes, good = hosts(tmp_path, "localhost", "dead"), tmp_path / "good"
    done = scaletrain("doctor", "--hostfile", nodes, port, "--exclude-bad", good)
    assert done.code == 1
    assert "fail    dead: cannot be asked (ssh: connect to host dead port 22: No route to host): look at" in done.out
    assert f"wrote   {good}: 1 of 2 nodes\n" in done.out
    assert parse_hostfile(good) == {"localhost": 1}


def test_no_hostfile_is_written_without_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    fake_ssh(tmp_path, monkeypatch)
    done = scaletrain("doctor", "--hostfile", hosts(tmp_path, "dead"), port, "--exclude-bad", tmp_path / "good")
    assert done.code == 1
    assert done.out.endswith(f"every node is bad: {tmp_path / 'good'} is not written\n")
    assert not (tmp_path / "good").exists()


def test_nodes_that_differ_are_told_and_left_out(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: str
) -> None:
    """Two of three have the same folder; on the third its path leads to another, with another recipe."""
    fake_ssh(tmp_path, monkeypatch, f"[ $host = 127.0.0.2 ] && cd {tmp_path}/other && last=${{last#cd * && }}")
    for place, more in (("shared", ""), ("other", "seed: 5\n")):
        (tmp_path / place).mkdir()
        recipe = write_recipe(tmp_path / place, dataset, Path("run"))
        recipe.write_text(recipe.read_text() + more)
    monkeypatch.chdir(tmp_path / "shared")
    nodes = hosts(tmp_path, "localhost", "127.0.0.1", "127.0.0.2")
    found = report(scaletrain("doctor", "recipe.yaml", "--hostfile", nodes, port, "--json"))
    told = [(check, node) for check, node, _ in failures(found) if check != "link"]  # three ranks share these cores
    assert told == [("recipe", "127.0.0.2"), ("shared", "127.0.0.2")]
    assert "127.0.0.2" in found["exclude"]


def test_slurm_tells_what_to_exclude(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    (tmp_path / "srun").write_text(
        "#!/bin/sh\ncase $* in *--nodelist=dead*) echo 'srun: error: Node failure on dead' >&2; exit 1 ;; esac\n"
        'while [ "${1#-}" != "$1" ]; do shift; done\nexec "$@"\n'
    )
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "localhost,dead")
    done = scaletrain("doctor", port, "--exclude-bad", "-")
    assert done.code == 1
    assert "nodes   2: localhost, dead, by srun\n" in done.out
    assert "fail    dead: cannot be asked (srun: error: Node failure on dead)" in done.out
    assert done.out.endswith("--exclude=dead\n")
    assert scaletrain("doctor", port, "--exclude-bad", tmp_path / "bad").out.endswith("bad: 1 of 2 nodes\n")
    assert (tmp_path / "bad").read_text() == "--exclude=dead\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.yaml"], "none.yaml: the recipe cannot be read"),
        (["--hostfile", "none"], "--hostfile none cannot be read (No such file or directory): give a file of hosts"),
        (["--build"], "--build needs a recipe, which says what ops a run uses: name it before the options"),
        (["--exclude-bad", "x"], "--exclude-bad x has no effect without --hostfile or SLURM: remove it"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    done = scaletrain("doctor", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {message}")
    assert done.err.count("\n") == 1


def test_a_master_port_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "http")
    done = scaletrain("doctor")
    assert done.code == 2
    assert done.err == "error: MASTER_PORT=http is no port: set it to a number from 1024 to 65535, or unset it\n"


def test_a_port_that_another_run_uses_is_told(port: str) -> None:
    with socket.create_server(("", 0)) as other:
        taken = other.getsockname()[1]
        done = scaletrain("doctor", f"--master-port={taken}")
    assert done.code == 0
    assert f"port {taken} cannot be listened on (Address already in use): another run may use it" in done.out
