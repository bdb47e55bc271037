"""What is wrong between nodes: what differs, who cannot reach whom, which link is slow."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import median_high

from scaletrain.cluster.doctor.facts import Clock, Evidence, Facts, Node, Pair, Storage, Wants
from scaletrain.cluster.doctor.finding import Finding, Severity, named
from scaletrain.cluster.doctor.node_rules import judge_node

_CLOCK_WARN, _CLOCK_FAIL = 2.0, 60.0  # seconds
_SLOW = 0.5  # of the median
_MOST_PAIRS = 8  # that are told one by one
_SLOW_STORAGE = 100e6  # bytes a second: ten minutes for 60 GB
# Of these another version may compute or talk otherwise; the rest is told too.
_GRAVE = ("torch", "deepspeed", "scaletrain", "code", "nccl", "cuda")
_LOCAL_KINDS = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "f2fs")


def judge(evidence: Evidence, wants: Wants) -> list[Finding]:
    """Every finding, those of one node first."""
    nodes = evidence.nodes
    facts = {node.name: node.facts for node in nodes if node.facts is not None}
    return [
        *(finding for node in nodes for finding in judge_node(node, wants)),
        *judge_versions({name: found.versions for name, found in facts.items()}),
        *_judge_jobs(facts),
        *judge_clocks({node.name: node.clock for node in nodes if node.clock is not None}),
        *_judge_hardware(facts),
        *_judge_ports(nodes, wants),
        *_judge_exchange(nodes),
        *_judge_sharing(nodes, facts, wants),
        *_judge_storage({node.name: node.storage for node in nodes if node.storage and not node.storage.fault}, wants),
        *_judge_pairs(evidence, wants),
    ]


def judge_versions(versions: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """Nodes that have another version than most."""
    for name in dict.fromkeys(name for own in versions.values() for name in own):
        severity: Severity = "fail" if name in _GRAVE else "warn"
        what = "other scaletrain source files" if name == "code" else name
        of = {node: own.get(name, "none") for node, own in versions.items()}
        for node, own, most in _odd_ones(of):
            told = "than most nodes" if name == "code" else f"{own}, most nodes have {most}"
            yield Finding(severity, "versions", f"{what} {told}", "install the same on every node", node)


def judge_clocks(clocks: Mapping[str, Clock]) -> Iterator[Finding]:
    """Against the machine that asks, which may be the one that is wrong."""
    ahead = [clock.ahead for clock in clocks.values()]
    if len(ahead) > 2 and min(clock.off for clock in clocks.values()) > _CLOCK_WARN > max(ahead) - min(ahead):
        what = f"all nodes' clocks agree, that of this machine is {abs(ahead[0]):,.1f} s off"
        yield Finding("warn", "clock", what, "run chrony or ntpd here")
        return
    for node, clock in clocks.items():
        if clock.off > _CLOCK_WARN:
            way = "ahead" if clock.ahead > 0 else "behind"
            severity: Severity = "fail" if clock.off > _CLOCK_FAIL else "warn"
            yield Finding(severity, "clock", f"its clock is {clock.off:,.1f} s {way}", "run chrony or ntpd there", node)


def _odd_ones(values: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """(node, its value, the value of most) of each that differs from most; with a tie the first node's counts."""
    if not values:
        return
    most = Counter(values.values()).most_common(1)[0][0]  # of equal counts the first that was met
    yield from ((node, value, most) for node, value in values.items() if value != most)


def _judge_jobs(facts: Mapping[str, Facts]) -> Iterator[Finding]:
    jobs = {node: found.job for node, found in facts.items() if found.job is not None}
    remedy = "copy it to every node, or put it on a disk that all share"
    for node, _, _ in _odd_ones({node: job.recipe for node, job in jobs.items() if not job.fault}):
        yield Finding("fail", "recipe", "its recipe is another than that of most nodes", remedy, node)
    for node, _, _ in _odd_ones({node: job.deepspeed for node, job in jobs.items() if not job.fault}):
        yield Finding("fail", "recipe", "its DeepSpeed file is another than that of most nodes", remedy, node)
    whole = {node: job.datasets for node, job in jobs.items() if not job.fault and not job.data_fault}
    for source in dict.fromkeys(source for prints in whole.values() for source in prints):
        for node, own, most in _odd_ones({node: prints.get(source, "none") for node, prints in whole.items()}):
            what = f"its dataset has the fingerprint {own[:12]}, that of most nodes {most[:12]}"
            yield Finding("fail", "dataset", what, remedy, node, f"source {source}" if source != "data" else "")


def _judge_hardware(facts: Mapping[str, Facts]) -> Iterator[Finding]:
    """Nodes that are built otherwise than most. One that has lost a GPU is told as that already."""
    whole = {node: f for node, f in facts.items() if not f.devices.fault and len(f.devices.gpus) == f.devices.files}
    active = {node: [p for p in found.infiniband if p.state == "ACTIVE"] for node, found in facts.items()}
    values = {
        ("gpu", "GPUs"): {node: _counted([gpu.name for gpu in f.devices.gpus]) for node, f in whole.items()},
        ("gpu", "GPU links"): {
            node: _counted([kind for kind, count in f.devices.links.items() for _ in range(count)])
            for node, f in whole.items()
        },
        ("infiniband", "active InfiniBand ports"): {
            node: _counted([f"{port.rate_gbps:g} Gb/s" for port in ports]) for node, ports in active.items()
        },
        ("network", "network speed"): {
            node: f"{f.interface.gbps:g} Gb/s" for node, f in facts.items() if f.interface is not None
        },
    }
    for (check, name), of in values.items():
        for node, own, most in _odd_ones(of):
            yield Finding("warn", check, f"{name}: {own}, most nodes have {most}", "it slows down all", node)
    if not any(active.values()):
        for node, found in facts.items():
            if found.infiniband:
                down = ", ".join(port.name for port in found.infiniband)
                yield Finding("warn", "infiniband", f"no port is active ({down})", "look at its cables", node)


def _counted(names: Sequence[str]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in sorted(Counter(names).items())) or "none"


def _judge_ports(nodes: tuple[Node, ...], wants: Wants) -> Iterator[Finding]:
    asking = [node.name for node in nodes if node.fault is None]  # the others are told already
    for node in nodes:
        for port, why in node.refused_ports.items():
            yield Finding(
                "fail" if len(asking) > 1 else "warn", "port", f"port {port} cannot be listened on ({why})",
                "another run may use it: give the launcher --master_port another number", node.name,
            )  # fmt: skip
    missed: dict[tuple[str, str], list[str]] = {}
    for node in nodes:
        for miss in node.unreached:
            if miss.node not in asking:
                continue
            master = " (master)" if miss.port == wants.master_port else ""
            missed.setdefault((node.name, miss.node), []).append(f"{miss.port}{master} {miss.why}")
    for target in dict.fromkeys(target for _, target in missed):
        sources = [source for source, other in missed if other == target]
        ports = ", ".join(
            dict.fromkeys(why for (_, other), misses in missed.items() if other == target for why in misses)
        )
        remedy = "let nodes reach each other on all ports (firewall, security group, names in /etc/hosts)"
        if len(asking) > 2 and len(sources) == len(asking) - 1:
            yield Finding("fail", "port", f"no node reaches it: port {ports}", remedy, target)
            continue
        for source in sources:
            what = f"does not reach {target}: port {', '.join(missed[source, target])}"
            yield Finding("fail", "port", what, remedy, source)


def _judge_exchange(nodes: tuple[Node, ...]) -> Iterator[Finding]:
    """Test ranks that failed by themselves, not for want of a node that fell silent while they met it."""
    lost = [node.name for node in nodes if node.fault is not None and node.fault[0] == "ranks"]
    for node in nodes:
        for what in node.ranks.faults if node.ranks is not None else ():
            if lost:
                yield Finding(
                    "note",
                    "exchange",
                    f"its test ranks were cut off by the loss of {named(lost)}: {what}",
                    "",
                    node.name,
                )
                continue
            yield Finding(
                "fail", "exchange", f"its test ranks failed: {what}",
                "let nodes reach each other on all ports; NCCL_DEBUG=INFO tells more", node.name,
            )  # fmt: skip


def _judge_sharing(nodes: tuple[Node, ...], facts: Mapping[str, Facts], wants: Wants) -> Iterator[Finding]:
    seen = {node.name: node.sees_run_folder for node in nodes if node.sees_run_folder is not None}
    if not seen:
        return
    blind = [name for name, sees in seen.items() if not sees]
    what = (
        "is not the same folder as on the other nodes: the checkpoint folder must be shared or a save cannot be whole"
    )
    remedy = "put run.dir on a disk that all nodes mount"
    if blind and len(blind) == len(seen):  # no one node is at fault
        yield Finding(
            "fail",
            "shared",
            f"{what} ({named(blind)} do not see what {nodes[0].name} writes)",
            remedy,
            "",
            wants.run_folder,
        )
    else:
        yield from (Finding("fail", "shared", what, remedy, node, wants.run_folder) for node in blind)
    for place in ("code", "dataset"):
        local = [
            node for node, found in facts.items()
            if any(disk.name.startswith(place) and disk.kind in _LOCAL_KINDS for disk in found.disks)
        ]  # fmt: skip
        if local:
            yield Finding(
                "note", "shared", f"the {place} lies on a disk of the node: keep the copies alike ({named(local)})"
            )


def _judge_storage(storage: Mapping[str, Storage], wants: Wants) -> Iterator[Finding]:
    """All nodes wrote at once, as in a save."""
    if not storage:
        return
    writes = {node: found.written_bytes / max(found.write_seconds, 1e-6) for node, found in storage.items()}
    reads = [found.read_bytes / max(found.read_seconds, 1e-6) for found in storage.values()]
    usual = median_high(writes.values())
    for node, rate in writes.items():
        if rate < _SLOW_STORAGE or (len(writes) > 2 and rate < _SLOW * usual):
            what = f"writes {rate / 1e6:,.0f} MB/s, {usual / 1e6:,.0f} MB/s is usual here"
            yield Finding(
                "warn", "storage", what, "saves will be slow: look at its disk or mount", node, wants.run_folder
            )
    what = f"{_span(list(writes.values()))} MB/s are written until they are on the disk, {_span(reads)} MB/s read back"
    yield Finding("note", "storage", what, "", "", wants.run_folder)


def _span(rates: list[float]) -> str:
    low, high = f"{min(rates) / 1e6:,.0f}", f"{max(rates) / 1e6:,.0f}"
    return low if low == high else f"{low} to {high}"


def _judge_pairs(evidence: Evidence, wants: Wants) -> Iterator[Finding]:
    """Each pair against the median of all, and against what the user expects. A node whose links are mostly slow is
    told as such, in place of its pairs."""
    pairs = evidence.pairs
    if not pairs:
        return
    rates = [pair.gbps for pair in pairs]
    # With three nodes a slow one slows two pairs of three: there the fastest is the measure.
    usual = median_high(rates) if len(rates) > 3 else max(rates)
    least = max(_SLOW * usual, wants.gbps or 0.0)
    slow = sorted((pair for pair in pairs if pair.gbps < least), key=lambda pair: pair.gbps)
    rule = f"{usual:,.2f} Gb/s is usual" + (f", --expect-gbps is {wants.gbps:g}" if wants.gbps is not None else "")
    places = list(dict.fromkeys(name for pair in pairs for name in (pair.one, pair.other)))
    guilty = [name for name in places if _is_guilty(name, pairs, slow)]
    guilty = guilty if len(guilty) < len(places) else []  # all of them: no one's fault
    nodes = [node.name for node in evidence.nodes]
    for name in guilty:
        own = [pair.gbps for pair in pairs if name in (pair.one, pair.other)]
        what = f"slow to most others, {min(own):,.2f} to {max(own):,.2f} Gb/s; {rule}"
        node, place = (name, "") if name in nodes else (nodes[0], name)
        yield Finding("fail", "link", what, "look at its cable, adapter and switch port", node, place)
    rest = [pair for pair in slow if pair.one not in guilty and pair.other not in guilty]
    for number, pair in enumerate(rest[:_MOST_PAIRS], start=1):
        severity: Severity = "fail" if wants.gbps is not None and pair.gbps < wants.gbps else "warn"
        more = f" (and {len(rest) - number} more pairs are slow)" if number == _MOST_PAIRS < len(rest) else ""
        what = f"{pair.gbps:,.2f} Gb/s; {rule}{more}"
        remedy = "look at the way between the two, and at the interface that is used"
        yield Finding(severity, "link", what, remedy, "", f"{pair.one} - {pair.other}")
    told = f"1 pair: {usual:,.2f} Gb/s"
    if len(pairs) > 1:
        told = f"{len(pairs)} pairs: {min(rates):,.2f} to {max(rates):,.2f} Gb/s, {usual:,.2f} is usual"
    if evidence.rounds_left_out:
        told += f"; {evidence.rounds_left_out} rounds of pairs did not fit in the time"
    yield Finding("note", "link", told)


def _is_guilty(name: str, pairs: tuple[Pair, ...], slow: list[Pair]) -> bool:
    """Whether more than half of a place's links are slow, and it has several."""
    own = [pair for pair in pairs if name in (pair.one, pair.other)]
    return len(own) > 1 and 2 * sum(pair in slow for pair in own) > len(own)
