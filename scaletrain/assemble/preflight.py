"""What a launch finds out about its nodes before it trains: a small record of each, exchanged once."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scaletrain.assemble.settle import Settled
from scaletrain.cluster.doctor import collect
from scaletrain.cluster.doctor.cluster_rules import judge_clocks, judge_versions
from scaletrain.cluster.doctor.facts import Clock, Disk, Wants
from scaletrain.cluster.doctor.finding import Finding
from scaletrain.cluster.doctor.node_rules import judge_disks
from scaletrain.config.load import dump_shared
from scaletrain.errors import ClusterError
from scaletrain.runtime import dist

_CLOCK_DOUBT = 1.0  # seconds between the moments at which ranks leave the exchange before this one


@dataclass(frozen=True)
class Record:
    """One rank's. `same`: what must be equal everywhere. `versions` and `disks` are told by the first rank of
    each node, versions only where there are others to compare with."""

    node: str
    time: float
    same: dict[str, str]
    versions: dict[str, str]
    disks: tuple[Disk, ...]


def check_nodes(settled: Settled) -> list[Finding]:
    """What is odd about the nodes of this launch, none of it in the way of training. All ranks call it, right after
    another exchange: their clocks are compared.

    ClusterError where training would be wrong: the nodes' copies of recipe, DeepSpeed file or dataset differ.
    """
    now = time.time()
    mine = _record(settled, now)
    everyone: list[Record] = dist.gather(mine)
    for record in everyone:
        if differing := [name for name, value in record.same.items() if value != everyone[0].same[name]]:
            raise ClusterError(
                f"{' and '.join(differing)} on {record.node} differ from those on {everyone[0].node}: copy them to "
                "every node, or put them on a disk that all share"
            )
    return [replace(finding, severity="warn") for finding in _judge(settled, everyone)]


def _record(settled: Settled, now: float) -> Record:
    is_first = settled.world.local_rank == 0
    folder = Path(settled.recipe.run.dir)
    return Record(
        node=os.uname().nodename,
        time=now,
        same={
            "recipe": dump_shared(settled.recipe),
            "DeepSpeed file": json.dumps(settled.deepspeed, sort_keys=True),
            "model or dataset": json.dumps(settled.identity.to_dict(), sort_keys=True),
        },
        versions=collect.versions() if is_first and settled.world.nodes > 1 else {},
        disks=collect.disks(collect.scratch_places() | {"run folder": folder}) if is_first else (),
    )


def _judge(settled: Settled, everyone: Sequence[Record]) -> Iterator[Finding]:
    nodes = {record.node: record for record in everyone if record.disks}
    wants = Wants(checkpoint_bytes=settled.job.checkpoint_bytes)
    yield from judge_versions({name: record.versions for name, record in nodes.items()})
    yield from judge_clocks({n: Clock(record.time - everyone[0].time, _CLOCK_DOUBT) for n, record in nodes.items()})
    for name, record in nodes.items():
        yield from judge_disks(record.disks, wants, name)
