"""Random numbers of a training step, such as dropout's: a function of the run's seed, the sample and the rank."""

import hashlib

import torch

from scaletrain.runtime import dist


def seed_step(seed: int, samples_seen: int) -> None:
    """Seeds this rank's generators for the step that begins at a sample, so that a resumed run draws what it would have
    drawn."""
    text = f"{seed}/{samples_seen}/{dist.rank()}".encode()
    torch.manual_seed(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1)
