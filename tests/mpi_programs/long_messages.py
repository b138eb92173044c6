"""Slices longer than one message may be: the limit is lowered to 64 bytes, so that the sum of 1000 floats needs many."""

from __future__ import annotations

import numpy as np
from ranks import COMM, RANK, say

from wagma.core.groups import group_of
from wagma.real.kernel import mpi_native, native

COUNT = 1000
engine = native().Engine(
    mpi_native().connect(COMM.py2f(), 20.0, 64), np.zeros(COUNT, np.float32), group_size=2, sync_period=3, timeout_s=20.0
)
for t in range(12):
    model = (np.arange(COUNT) + 1000 * RANK).astype(np.float32)
    COMM.Barrier()  # so that all are there and each sum is known
    outcome = engine.arrive(t, model)
    engine.copy_result(model)
    if t % 3 == 2:
        assert outcome.fresh
        assert (model == np.arange(COUNT) + 1000 * (COMM.size - 1) / 2).all()
    elif outcome.fresh:
        group = group_of(COMM.size, 2, t, RANK)
        late = (model - np.arange(COUNT) * len(group) - 1000 * sum(group)) % 1  # a member may contribute an older model
        assert (late == 0).all()
engine.close()
say("ok")
