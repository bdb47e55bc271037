"""Where a process stands among the ranks of its run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """`rank` of `size`, `local_rank` of `local_size` on node `node` of `nodes`; no torch.

    `cores`: the processors of this rank alone, where its launcher tells.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    node: int = 0
    nodes: int = 1
    master_address: str = "127.0.0.1"
    master_port: int | None = None
    cores: int | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0
