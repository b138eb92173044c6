"""Which samples of a data set are this rank's: a sampler for torch's DataLoader."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import numpy as np
import torch

from wagma.draws import bits
from wagma.errors import InputError
from wagma.real.launching import ranks


class ShardSampler(torch.utils.data.Sampler[int]):
    """This rank's samples of a data set, drawn anew in each epoch; all ranks' shards together are the whole set, each sample once.

    As torch's DistributedSampler, with one difference: nothing is repeated to make shards equally long. They differ by one sample at most,
    since ranks may end at different iterations; `drop_last` leaves out the samples that make the difference (up to world_size - 1, others
    in each epoch), so that all ranks have the same number.

        sampler = wagma.ShardSampler(data)
        loader = torch.utils.data.DataLoader(data, batch_size=32, sampler=sampler)
        for epoch in range(10):
            sampler.set_epoch(epoch)
            for batch in loader:
                ...

    Args:
        data: the data set, or how many samples it has.
        rank, world_size: of MPI's world unless given.
        shuffle: False: samples rank, rank + world_size, ... in their order.
        seed: the order is a function of (seed, epoch) alone, the same on all ranks, machines and versions of torch.

    Raises InputError for a data set without a length or with fewer samples than ranks, and for a rank that is not there; as
    `wagma.rank` does, if it has to ask it.
    """

    def __init__(
        self,
        data: Sized | int,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        self.world_size = ranks.world_size() if world_size is None else world_size
        self.rank = ranks.rank() if rank is None else rank
        if self.world_size < 1:
            raise InputError(f"world_size = {self.world_size}: must be at least 1")
        if not 0 <= self.rank < self.world_size:
            raise InputError(f"rank = {self.rank}: must be from 0 to {self.world_size - 1}")
        try:
            self._samples = data if isinstance(data, int) else len(data)
        except TypeError:
            raise InputError(f"data is a {type(data).__name__}: must have a length, or be one") from None
        if self._samples < self.world_size:
            raise InputError(f"data: {self._samples} samples for {self.world_size} ranks: must be at least one for each")
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Have the next pass draw the order of `epoch`, on all ranks the same; without it each pass has the same one."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(range(self.rank, self._shared, self.world_size))
        # Sorted by counter-based draws: no generator of torch or numpy whose order may change with their versions.
        order = np.argsort(bits(self.seed, "shard", np.arange(self._samples), self.epoch), kind="stable")
        return iter(order[self.rank : self._shared : self.world_size].tolist())

    def __len__(self) -> int:
        return len(range(self.rank, self._shared, self.world_size))

    @property
    def _shared(self) -> int:
        """How many samples of the order are shared out."""
        return self._samples - self._samples % self.world_size if self.drop_last else self._samples
