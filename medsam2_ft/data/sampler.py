"""Which samples make up which batch on which rank: a pure function of seed, epoch and step, resumable at any step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int]
"""(epoch, index) of a sample."""


class EpochBatches(Sampler[list[Key]]):
    """Batches of shuffled (epoch, index) keys for one rank.

    The global batch of a step is the same set of samples however many ranks share it, and every rank gets the same number of
    batches: the epoch's permutation is filled up from its own beginning to a multiple of the global batch.

    Args:
        num_samples: in the dataset.
        batch_size: samples a rank takes a step.
        seed: of the run.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(self, num_samples: int, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.skip = 0

    @property
    def sampler(self) -> EpochBatches:
        """Itself: Lightning calls `set_epoch` on a batch sampler's `sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration goes through."""
        self.epoch = epoch

    def resume(self, *, epoch: int, batches: int) -> None:
        """Let the next iteration start behind the `batches` already consumed in `epoch`."""
        self.epoch, self.skip = epoch, batches

    def __len__(self) -> int:
        return -(-self.num_samples // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_samples)
        order = np.resize(order, len(self) * self.batch_size * self.world_size)
        mine = order.reshape(len(self), self.world_size, self.batch_size)[:, self.rank]
        first, self.skip = self.skip, 0
        epoch = self.epoch
        for batch in mine[first:]:
            yield [(epoch, int(index)) for index in batch]


class RankShare(Sampler[int]):
    """Every sample exactly once over all ranks, in order and unpadded: ranks may get one more or less. For validation."""

    def __init__(self, num_samples: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, num_samples, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
