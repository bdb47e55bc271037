"""Free memory: the machine's, or what a control group leaves, whichever is less."""

from pathlib import Path

from scaletrain.runtime.machine import available_memory

KIB = 1024


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_without_a_group_the_machine_decides(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None
    write(tmp_path, {"proc/meminfo": "MemTotal: 900 kB\nMemAvailable:     500 kB\n"})
    assert available_memory(tmp_path) == 500 * KIB


def test_each_group_above_counts_less_the_files_that_make_way(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/meminfo": "MemAvailable: 500 kB\n",
            "proc/self/cgroup": "0::/job/step\n",
            "sys/fs/cgroup/job/memory.max": f"{300 * KIB}\n",
            "sys/fs/cgroup/job/memory.current": f"{250 * KIB}\n",
            "sys/fs/cgroup/job/memory.stat": f"anon 7\ninactive_file {150 * KIB}\n",
            "sys/fs/cgroup/job/step/memory.max": "max\n",
        },
    )
    assert available_memory(tmp_path) == 200 * KIB


def test_the_first_kind_of_groups_is_read_too(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/meminfo": "MemAvailable: 500 kB\n",
            "proc/self/cgroup": "9:name=systemd:/\n5:cpu,cpuacct:/x\n4:memory:/x\n0::/\n",
            "sys/fs/cgroup/memory/x/memory.limit_in_bytes": f"{100 * KIB}",
            "sys/fs/cgroup/memory/x/memory.usage_in_bytes": f"{90 * KIB}",
            "sys/fs/cgroup/memory/x/memory.stat": f"inactive_file {KIB}\ntotal_inactive_file {20 * KIB}\n",
        },
    )
    assert available_memory(tmp_path) == 30 * KIB


def test_in_a_container_the_group_may_be_mounted_at_the_top(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/../../host/path\n",
            "sys/fs/cgroup/memory.max": f"{100 * KIB}",
            "sys/fs/cgroup/memory.current": f"{120 * KIB}",
        },
    )
    assert available_memory(tmp_path) == 0


def test_here_it_is_told() -> None:
    found = available_memory()
    assert found is not None
    assert found > 1e6
