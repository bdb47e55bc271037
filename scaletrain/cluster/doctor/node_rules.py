"""What is wrong with a node by itself: facts in, findings out."""

import shlex
from collections.abc import Iterator

from scaletrain.cluster.doctor.facts import Devices, Disk, Facts, Job, Leftover, Node, Wants
from scaletrain.cluster.doctor.finding import Finding, Severity

GB = 10**9
_HOT = 85.0  # degrees; GPUs of data centres slow down from 85 to 95 on
_LOCKED_MEMORY = GB  # what NCCL registers with an adapter is a fraction of it
_REMEDIES = (  # what ssh and the shell say when a node cannot be asked
    ("permission denied", "give this user a key there (ssh-copy-id {node}); doctor types no password"),
    ("host key verification", "accept its key once (ssh {node})"),
    ("could not resolve", "correct the name, or add it to DNS or /etc/hosts"),
    ("no module named", "install the same scaletrain there, at the same path"),
    ("no such file", "put the code and Python there at the same path as here"),
    ("not responding", "look whether it has power and network"),
    ("no answer", "look there for a dead mount, a full disk or a hanging driver"),
)  # fmt: skip
_LATE = {
    "disks": ("the folders of the run", "look for a dead mount (df hangs)"),
    "job": ("the recipe or its dataset", "look for a dead mount, or a slow one"),
    "devices": ("nvidia-smi", "look for a hanging driver (dmesg), and reboot the node"),
}


def judge_node(node: Node, wants: Wants) -> Iterator[Finding]:
    """Every finding about one node that needs no other to compare with."""
    if node.fault is not None:
        question, why = node.fault
        remedy = next((text for said, text in _REMEDIES if said in why.lower()), "look at that node")
        what = (
            f"cannot be asked ({why})"
            if question in ("start", "time")
            else f"fell silent when asked for {question!r} ({why})"
        )
        yield Finding("fail", "reach", what, remedy.format(node=node.name), node.name)
    facts = node.facts
    if facts is not None:
        for part in facts.late:
            what, remedy = _LATE.get(part, (part, "look at that node"))
            yield Finding("fail", "reach", f"{what} gave no answer in time", remedy, node.name)
        yield from judge_disks(facts.disks, wants, node.name, len(facts.devices.gpus))
        yield from _judge_limits(facts, node.name)
        yield from _judge_leftovers(facts.leftovers, node.name)
        yield from _judge_devices(facts.devices, wants.gpus.get(node.name), node.name)
        yield from _judge_job(facts.job, facts.tools, node)
        if facts.interface is not None:
            speed = f", {facts.interface.gbps:g} Gb/s" if facts.interface.gbps else ""
            yield Finding("note", "network", f"ranks talk over {facts.interface.name}{speed}", "", node.name)
    if node.storage is not None and node.storage.fault:
        remedy = "choose a run.dir that can be written there"
        yield Finding("fail", "storage", node.storage.fault, remedy, node.name, wants.run_folder)
    if node.ranks is not None:
        for what in node.ranks.wrong:
            yield Finding(
                "fail", "exchange", f"wrong values after an {what}", "do not train there: have it repaired", node.name
            )


def judge_disks(disks: tuple[Disk, ...], wants: Wants, node: str, gpus: int = 0) -> Iterator[Finding]:
    """Room where a run writes; `gpus`: of the node, which share memory if they are several."""
    severity: Severity
    for disk in disks:
        free = disk.free_bytes
        left = f"{free / GB:,.1f} GB of {disk.total_bytes / GB:,.0f} GB free"
        if disk.name == "run folder":
            need = wants.checkpoint_bytes
            if free < max(2 * need, 2 * GB):
                more = (
                    f", a checkpoint takes {need / GB:,.1f} GB, twice that while one replaces another" if need else ""
                )
                severity = "fail" if free < max(need, GB // 10) else "warn"
                yield Finding(
                    severity, "disk", f"{left}{more}", "free space, or choose another run.dir", node, disk.path
                )
        elif disk.name == "temporary folder" and free < GB:
            severity = "fail" if free < GB // 20 else "warn"
            yield Finding(severity, "disk", left, "free space, or set TMPDIR to another disk", node, disk.path)
        elif disk.name == "/dev/shm" and free < GB:  # Docker gives 64 MB: NCCL fails on several GPUs
            severity = "fail" if free < (256 if gpus > 1 else 16) << 20 else "warn"
            left = f"{free / 1e6:,.0f} MB of {disk.total_bytes / 1e6:,.0f} MB free"
            remedy = "remove what is left there, or give the container more (docker run --shm-size=8g)"
            yield Finding(severity, "disk", left, remedy, node, disk.path)


def _judge_limits(facts: Facts, node: str) -> Iterator[Finding]:
    for name, least, flag in (("open files", 4096, "n"), ("processes", 4096, "u")):
        limit = facts.limits.get(name)
        if limit is not None and limit < least:
            what = f"a process may have {limit:,} {name}, a run may need {least:,}"
            yield Finding("warn", "limits", what, f"raise it (ulimit -{flag}, /etc/security/limits.conf)", node)
    memory = facts.limits.get("locked memory")
    if any(port.state == "ACTIVE" for port in facts.infiniband) and memory is not None:
        yield Finding(
            "fail" if memory < _LOCKED_MEMORY else "warn",
            "limits",
            f"a process may lock {memory / 1e6:,.1f} MB of memory, InfiniBand needs it without limit",
            "set memlock to unlimited in /etc/security/limits.conf (SLURM: LimitMEMLOCK of slurmd)",
            node,
        )


def _judge_leftovers(leftovers: tuple[Leftover, ...], node: str) -> Iterator[Finding]:
    for left in leftovers:
        if left.kind == "lock":
            yield Finding(
                "fail", "leftovers", f"a build lock {left.size / 3600:,.1f} hours old that nothing holds: a start that "
                "builds this op would wait for ever", shlex.join(["rm", left.path]), node, left.path,
            )  # fmt: skip
    memory = [left for left in leftovers if left.kind == "memory"]
    if (held := sum(left.size for left in memory)) > 64e6:
        files = shlex.join(["rm", *(left.path for left in memory[:16])])
        what = f"{len(memory):,} files of dead processes hold {held / 1e6:,.0f} MB of memory"
        yield Finding("warn", "leftovers", what, files, node, "/dev/shm")


def _judge_devices(devices: Devices, wanted: int | None, node: str) -> Iterator[Finding]:
    if devices.fault:
        yield Finding("fail", "gpu", f"{devices.fault}", "reboot it, or have its driver or GPU repaired", node)
        return
    found = len(devices.gpus)
    if found != devices.files or (wanted is not None and devices.files and found != wanted):
        expected = wanted if wanted is not None else devices.files
        yield Finding(
            "fail" if found < expected else "note", "gpu", f"{found} GPUs answer, {expected} are expected",
            "look for lost ones (nvidia-smi, dmesg | grep Xid)" if found < expected else "", node,
        )  # fmt: skip
    names = {gpu.uuid: f"GPU {gpu.index}" for gpu in devices.gpus}
    for gpu in devices.gpus:
        place = names[gpu.uuid]
        if gpu.fault:
            yield Finding("fail", "gpu", gpu.fault, "reset it (nvidia-smi -r) or reboot the node", node, place)
        if gpu.ecc_uncorrected:
            what = f"{gpu.ecc_uncorrected} memory errors that could not be corrected since the last reset"
            yield Finding(
                "fail", "gpu", what, "reset it (nvidia-smi -r); have it replaced if they come back", node, place
            )
        for what in gpu.needs_reset:
            yield Finding("fail", "gpu", f"{what} is set", "reset it; have it replaced if it stays", node, place)
        if gpu.throttles:
            yield Finding(
                "warn", "gpu", f"slowed down by {', '.join(gpu.throttles)}", "see to cooling and power", node, place
            )
        elif gpu.temperature is not None and gpu.temperature >= _HOT:
            yield Finding("warn", "gpu", f"{gpu.temperature:.0f} degrees hot", "see to cooling", node, place)
        if gpu.power_limit and gpu.power_default and gpu.power_limit < 0.98 * gpu.power_default:
            what = f"its power is limited to {gpu.power_limit:.0f} W of {gpu.power_default:.0f} W"
            yield Finding("warn", "gpu", what, f"nvidia-smi -i {gpu.index} -pl {gpu.power_default:.0f}", node, place)
    for process in devices.processes:
        held = f", {process.memory_bytes / GB:,.1f} GB" if process.memory_bytes is not None else ""
        what = f"in use by process {process.pid} ({process.name}{held})"
        yield Finding("warn", "gpu", what, "end it, or wait for it", node, names.get(process.gpu, process.gpu))
    pairs = found * (found - 1) // 2
    bonded = sum(count for kind, count in devices.links.items() if kind.startswith("NV"))
    if devices.links and 0 < bonded < pairs:
        yield Finding(
            "note", "gpu", f"{bonded} of {pairs} pairs of GPUs have NVLink, the others go over PCIe", "", node
        )
    elif devices.links and not bonded:
        yield Finding("note", "gpu", "no NVLink: GPUs talk over PCIe", "", node)


def _judge_job(job: Job | None, tools: tuple[str, ...], node: Node) -> Iterator[Finding]:
    if job is None:
        return
    if job.fault:
        yield Finding("fail", "recipe", job.fault, "", node.name)
    if job.data_fault:
        yield Finding("fail", "dataset", job.data_fault, "", node.name)
    for op, built in job.ops.items():
        if (trouble := node.builds.get(op)) is not None:
            if trouble:
                yield Finding("fail", "ops", f"{op} cannot be built: {trouble}", "install what is missing", node.name)
            else:
                yield Finding("note", "ops", f"{op} is built", "", node.name)
        elif missing := [tool for tool in ("c++", "ninja") if not built and tool not in tools]:
            yield Finding(
                "fail", "ops", f"{op} is not built and {' and '.join(missing)} missing", "install it there", node.name
            )
        elif not built:
            what = f"{op} will be compiled when training starts, a minute or more"
            yield Finding("note", "ops", what, "scaletrain doctor RECIPE --build does it ahead", node.name)
