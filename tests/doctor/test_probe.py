"""What a probe tells of this machine and tries out on it, and the talk with one."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scaletrain.cluster.doctor import collect
from scaletrain.cluster.doctor.agents import MARK, Agent, Agents, Silence
from scaletrain.cluster.doctor.nodes import Place, probe_command
from scaletrain.cluster.doctor.trials import Ears, RunFolder, connect
from scaletrain.commands.probe import _places, read_job
from tests.conftest import ROOT, run_program


def agent(code: str) -> Agent:
    """One whose probe is a line of Python."""
    return Agent(Place("n1", (sys.executable, "-c", code)))


def answering(answer: str, greeting: str = "") -> str:
    return f"import sys\nfor _ in sys.stdin: print({greeting!r} + {MARK + answer!r}, flush=True)"


def test_a_probe_needs_neither_torch_nor_transformers() -> None:
    modules = "('torch', 'transformers', 'deepspeed', 'typer')"
    code = f"import sys, scaletrain.commands.probe; print([m for m in {modules} if m in sys.modules])"
    assert run_program("-c", code).out == "[]\n"


def test_the_versions_are_those_that_an_import_would_tell() -> None:
    import deepspeed
    import torch

    found = collect.versions()
    assert found["python"] == sys.version.split()[0]
    assert found["deepspeed"] == deepspeed.__version__
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found.get("cuda") == torch.version.cuda
    assert len(found["code"]) == 16


def test_the_digest_of_the_sources_follows_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.py").write_text("1")
    monkeypatch.setattr(collect, "_SOURCES", tmp_path)
    before = collect.versions()["code"]
    (tmp_path / "a.py").write_text("2")
    changed = collect.versions()["code"]
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({before, changed, collect.versions()["code"]}) == 3


def test_a_disk_is_that_of_the_nearest_folder(tmp_path: Path) -> None:
    deep, shm = collect.disks({"run folder": tmp_path / "not" / "yet", "/dev/shm": Path("/dev/shm")})
    space = os.statvfs(tmp_path)
    assert (deep.path, deep.total_bytes) == (str(tmp_path / "not" / "yet"), space.f_blocks * space.f_frsize)
    assert 0 < deep.free_bytes <= deep.total_bytes
    assert shm.kind == "tmpfs"


def test_a_question_without_an_answer_holds_up_no_other() -> None:
    begun = time.monotonic()
    answers, late = collect.ask_all({"quick": lambda: 1, "dead mount": lambda: time.sleep(30)}, 0.2)
    assert (answers, late) == ({"quick": 1}, ("dead mount",))
    assert time.monotonic() - begun < 5


def test_what_a_question_raises_is_raised() -> None:
    def broken() -> None:
        raise KeyError("defect")

    with pytest.raises(KeyError, match="defect"):
        collect.ask_all({"a": broken}, 5.0)


def test_ports_are_open_until_they_are_closed() -> None:
    ears = Ears()
    with socket.create_server(("", 0)) as other:
        taken = other.getsockname()[1]
        opened, refused = ears.open([taken, 0, 0])
    assert refused == {taken: "Address already in use"}
    assert len(opened) == 2
    assert connect([("127.0.0.1", port) for port in opened]) == []
    ears.close()
    (missed,) = connect([("127.0.0.1", opened[0])])
    assert (missed.node, missed.port, missed.why) == ("127.0.0.1", opened[0], "Connection refused")


def test_a_blocked_port_and_an_unknown_name_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def never_answered(place: tuple[str, int], seconds: float) -> socket.socket:
        raise TimeoutError("timed out")

    (unknown,) = connect([("no.such.host.invalid", 1)])
    assert "not known" in unknown.why or "resolution" in unknown.why
    monkeypatch.setattr(socket, "create_connection", never_answered)  # as a firewall that drops packets
    assert connect([("n1", 29500)])[0].why == "timed out"


def test_the_run_folder_is_left_as_it_was(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "a", "nonce")
    assert folder.leave_mark() == ""
    assert RunFolder(tmp_path / "runs" / "a", "nonce").sees_mark()
    stored = folder.measure()
    assert stored.written_bytes == stored.read_bytes > 0
    folder.clear()
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_that_holds_a_run_stays(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    folder = RunFolder(tmp_path, "nonce")
    folder.leave_mark()
    folder.measure()
    folder.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_node_with_another_folder_does_not_see_the_mark(tmp_path: Path) -> None:
    RunFolder(tmp_path / "a", "nonce").leave_mark()
    assert not RunFolder(tmp_path / "b", "nonce").sees_mark()
    assert not RunFolder(tmp_path / "a", "other").sees_mark()


def test_a_run_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = RunFolder(tmp_path / "file" / "run", "nonce")
    assert folder.leave_mark() == "Not a directory"
    assert folder.measure().fault == "Not a directory"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_a_read_only_run_folder_is_told(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", tmp_path], check=True)
    try:
        assert RunFolder(tmp_path, "nonce").leave_mark() == "Read-only file system"
        assert RunFolder(tmp_path, "nonce").measure().fault == "Read-only file system"
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_an_agent_asks_and_hears_past_a_greeting_shell() -> None:
    talker = agent("print('Welcome to n1!')\n" + answering("5"))
    assert talker.ask("time", 20.0) == 5
    talker.close()


def test_an_agent_tells_the_last_words_of_a_probe_that_dies() -> None:
    talker = agent("import sys; sys.exit('me@n1: Permission denied (publickey).')")
    assert talker.clock() == Silence("time", "me@n1: Permission denied (publickey).")
    assert talker.ask("facts", 1.0) == Silence("time", "me@n1: Permission denied (publickey).")
    talker.close()


def test_an_agent_tells_the_exit_code_of_a_probe_without_last_words() -> None:
    talker = agent("import sys; sys.exit(3)")
    assert talker.ask("time", 20.0) == Silence("time", "the probe ended with exit code 3")


def test_an_agent_gives_up_on_a_probe_that_hangs_and_ends_it() -> None:
    talker = agent("import time; time.sleep(60)")
    assert talker.ask("facts", 0.5) == Silence("facts", "no answer in 0 s")
    begun = time.monotonic()
    talker.close()
    assert time.monotonic() - begun < 5


def test_an_agent_that_cannot_be_started_is_silent() -> None:
    assert Agent(Place("n1", ("/no/such/ssh",))).silence == Silence("start", "/no/such/ssh: No such file or directory")


@pytest.mark.parametrize("seconds", [300.0, -300.0])
def test_a_clock_is_off_by_what_the_round_trip_cannot_explain(seconds: float) -> None:
    talker = agent(f"import sys, time\nfor _ in sys.stdin: print({MARK!r} + str(time.time() + {seconds}), flush=True)")
    clock = talker.clock()
    talker.close()
    assert not isinstance(clock, Silence)
    assert clock.off == pytest.approx(300.0, abs=1.0)
    assert (clock.ahead > 0) == (seconds > 0)


def test_agents_are_asked_side_by_side_and_the_silent_left_out() -> None:
    places = [Place(f"n{n}", (sys.executable, "-c", answering(str(n)))) for n in range(2)]
    agents = Agents([*places, Place("n2", (sys.executable, "-c", "pass"))])
    assert agents.ask("time", 20.0) == {"n0": 0, "n1": 1}
    assert agents.names == ["n0", "n1"]
    assert agents.ask("time", 20.0, {"n1": {}, "n2": {}}) == {"n1": 1}
    assert agents.silences() == {"n2": Silence("time", "the probe ended with exit code 0")}
    agents.close()


def test_a_probe_ends_when_nobody_asks_any_more_and_clears_up(tmp_path: Path) -> None:
    asked = f'{{"ask": "mark", "path": "{tmp_path}/run", "nonce": "n"}}\n'
    done = subprocess.run(
        probe_command(), input=asked, capture_output=True, text=True, check=True, timeout=60, cwd=ROOT
    )  # fmt: skip
    assert done.stdout == f'{MARK}""\n'
    assert list(tmp_path.iterdir()) == []


def test_a_live_source_is_no_prepared_dataset(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "run: {dir: run}\ndata: {source: huggingface, path: some/text, tokenizer: gpt2}\n"
        "model: {preset: llama-tiny}\ndeepspeed: ds_configs/zero1.json\ntrain: {max_steps: 1}\n",
        encoding="utf-8",
    )
    job = {"recipe": str(tmp_path / "r.yaml"), "overrides": [], "deepspeed_config": None}
    found = read_job(**job)
    assert (found.fault, found.data_fault, found.datasets) == ("", "", {})
    assert list(_places(job)) == ["run folder"]
