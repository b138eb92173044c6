"""The algorithms, one file each, as generators over effects; neither world is known here.

`register` adds one's own: a generator function and the schedule of collectives it needs. The drivers of both worlds then run
it by name.
"""

from __future__ import annotations

from wagma.algorithms.ad_psgd import ad_psgd
from wagma.algorithms.allreduce_sgd import allreduce_sgd
from wagma.algorithms.d_psgd import d_psgd
from wagma.algorithms.eager_sgd import eager_sgd
from wagma.algorithms.ideal import ideal
from wagma.algorithms.local_sgd import local_sgd
from wagma.algorithms.registry import ALGORITHMS, Collectives, Specification, register, specification
from wagma.algorithms.sgp import sgp
from wagma.algorithms.swarm_sgd import swarm_sgd
from wagma.algorithms.wagma_sgd import wagma_sgd

__all__ = [
    "ALGORITHMS",
    "Collectives",
    "Specification",
    "ad_psgd",
    "allreduce_sgd",
    "d_psgd",
    "eager_sgd",
    "ideal",
    "local_sgd",
    "register",
    "sgp",
    "specification",
    "swarm_sgd",
    "wagma_sgd",
]
