"""Two nodes, each a network namespace of its own, whose link goes down: both ends say so and end. Needs root."""

import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaletrain.data.shards import Dataset
from tests.conftest import ROOT, write_recipe
from tests.launch.test_stops import ENDLESS, values

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2"),
]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    """Two namespaces joined by a cable: 10.77.0.1 and 10.77.0.2 on `cable`."""
    names = [f"st{uuid.uuid4().hex[:6]}{n}" for n in range(2)]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("-n", names[0], "link", "add", "name", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        for n, name in enumerate(names):
            ip("-n", name, "addr", "add", f"10.77.0.{n + 1}/24", "dev", "cable")
            for device in ("cable", "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_a_link_that_goes_down_is_told_on_both_nodes_and_ends_them(
    nodes: list[str], dataset: Dataset, tmp_path: Path
) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    outputs, processes = [tmp_path / f"output-{n}.txt" for n in range(2)], []
    for n, name in enumerate(nodes):
        env = {
            **os.environ, "RANK": str(n), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
            "GROUP_RANK": str(n), "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29600", "GLOO_SOCKET_IFNAME": "cable",
        }  # fmt: skip
        own_name = ["unshare", "--uts", "sh", "-c", f'hostname node{n}; exec "$@"', "sh"]
        program = [sys.executable, "launch/pretrain.py", str(recipe), *ENDLESS, "guard.hang_seconds=5"]
        with outputs[n].open("wb") as output:
            processes.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", name, *own_name, *program], cwd=ROOT, env=env, stdout=output, stderr=output
                )
            )
    try:
        deadline = time.monotonic() + 60
        while not (run / "metrics.jsonl").is_file() or len(values(run, "loss")) < 3:
            assert time.monotonic() < deadline, [output.read_text() for output in outputs]
            time.sleep(0.05)
        time.sleep(1.5)
        ip("-n", nodes[0], "link", "set", "cable", "down")
        assert [process.wait(30) for process in processes] == [1, 1]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for n, output in enumerate(outputs):
        (line,) = re.findall(r"^error: .*$", output.read_text(), re.M)
        assert f"guard.hang_seconds=5: nothing is heard of rank {1 - n} on node{1 - n} " in line
        assert (run / "logs" / f"stacks-rank-{n:05d}.txt").is_file()
