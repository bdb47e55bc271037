"""What nodes tell and what is tried out between them: plain values, no judgement. They travel as JSON."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Disk:
    """A place that a run writes to, or reads its code or data from. `kind`: of the file system, as in /proc/mounts."""

    name: str
    path: str
    kind: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Gpu:
    """What nvidia-smi tells of one; None where the device does not say. `fault`: it answers no more, as told."""

    index: int
    name: str
    uuid: str
    memory_bytes: int | None = None
    temperature: float | None = None
    power_limit: float | None = None
    power_default: float | None = None
    ecc_uncorrected: int | None = None
    throttles: tuple[str, ...] = ()
    needs_reset: tuple[str, ...] = ()
    fault: str = ""


@dataclass(frozen=True)
class GpuProcess:
    """A process that computes on a GPU."""

    gpu: str  # uuid
    pid: int
    name: str
    memory_bytes: int | None


@dataclass(frozen=True)
class Devices:
    """`files`: GPUs that the kernel has a device file for. `links`: how many pairs of GPUs are joined by what (NV18,
    PIX, SYS...). `fault`: what nvidia-smi said instead of an answer."""

    files: int = 0
    gpus: tuple[Gpu, ...] = ()
    processes: tuple[GpuProcess, ...] = ()
    links: dict[str, int] = field(default_factory=dict)
    fault: str = ""


@dataclass(frozen=True)
class Port:
    """A port of an InfiniBand (or RoCE) adapter, as /sys/class/infiniband has it."""

    name: str
    state: str
    rate_gbps: float


@dataclass(frozen=True)
class Interface:
    """The network interface that ranks use towards the first node. `gbps`: 0 where it does not say."""

    name: str
    gbps: float = 0.0


@dataclass(frozen=True)
class Leftover:
    """`kind` "lock": a build lock of a dead process, `size` its age in seconds; "memory": shared memory that nobody
    holds, `size` in bytes."""

    kind: str
    path: str
    size: float


@dataclass(frozen=True)
class Job:
    """The recipe as this node reads it: digests of what must be equal, or the fault. `datasets`: fingerprint of each
    source. `ops`: DeepSpeed's that it needs, and whether they are built here."""

    recipe: str = ""
    deepspeed: str = ""
    fault: str = ""
    datasets: dict[str, str] = field(default_factory=dict)
    data_fault: str = ""
    vocab_size: int = 0
    ops: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """One node. `limits`: None is no limit. `late`: what gave no answer in time. `tools`: compilers and the like."""

    host: str
    versions: dict[str, str] = field(default_factory=dict)
    disks: tuple[Disk, ...] = ()
    limits: dict[str, int | None] = field(default_factory=dict)
    leftovers: tuple[Leftover, ...] = ()
    devices: Devices = Devices()
    infiniband: tuple[Port, ...] = ()
    interface: Interface | None = None
    job: Job | None = None
    tools: tuple[str, ...] = ()
    late: tuple[str, ...] = ()


@dataclass(frozen=True)
class Clock:
    """How far a node's clock is ahead of ours, in seconds, and by how much that may be wrong: half the round trip."""

    ahead: float
    doubt: float

    @property
    def off(self) -> float:
        """The least that it must be off by."""
        return max(0.0, abs(self.ahead) - self.doubt)


@dataclass(frozen=True)
class Unreached:
    """A port of another node to which no connection could be made."""

    node: str
    port: int
    why: str


@dataclass(frozen=True)
class Storage:
    """Writing to the run folder, made durable, and reading it back; or why not."""

    written_bytes: int = 0
    write_seconds: float = 0.0
    read_bytes: int = 0
    read_seconds: float = 0.0
    fault: str = ""


@dataclass(frozen=True)
class Ranks:
    """The test ranks of one node: collectives that gave wrong sums or values, ranks that failed, why."""

    wrong: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """The rate between two places, both directions in turn, while other pairs talk too."""

    one: str
    other: str
    gbps: float


@dataclass(frozen=True)
class Node:
    """Everything about one node. `fault`: why it did not answer (any more), and to what."""

    name: str
    fault: tuple[str, str] | None = None
    facts: Facts | None = None
    clock: Clock | None = None
    refused_ports: dict[int, str] = field(default_factory=dict)
    unreached: tuple[Unreached, ...] = ()
    sees_run_folder: bool | None = None
    storage: Storage | None = None
    ranks: Ranks | None = None
    builds: dict[str, str] = field(default_factory=dict)  # op -> what went wrong, "" if nothing


@dataclass(frozen=True)
class Evidence:
    """All nodes, in the order of the hostfile, and what was measured between them."""

    nodes: tuple[Node, ...]
    pairs: tuple[Pair, ...] = ()
    rounds_left_out: int = 0


@dataclass(frozen=True)
class Wants:
    """What the user expects. `gpus`: of each node, by name. `checkpoint_bytes`: of one, 0 if not known. `run_folder`:
    "" without a recipe."""

    gpus: dict[str, int] = field(default_factory=dict)
    gbps: float | None = None
    run_folder: str = ""
    checkpoint_bytes: int = 0
    master_port: int = 29500
