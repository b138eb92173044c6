"""What an algorithm needs of a real rank: the kernel's collectives, letters between ranks, or both. The one place that says so."""

from __future__ import annotations

from wagma.algorithms import ALGORITHMS, Collectives, Specification, specification
from wagma.core.effects import Value
from wagma.errors import InputError
from wagma.real.node import ON_DEVICE

_GOSSIP = (Collectives.NEIGHBOURS, Collectives.PAIRS)


def has_collectives(algorithm: Specification) -> bool:
    """Whether its ranks need an engine."""
    return algorithm.collectives not in (Collectives.NONE, *_GOSSIP)


def has_syncs(name: str) -> bool:
    """Whether the ranks of the algorithm of that name all hold one model at times."""
    algorithm = specification(name)
    return has_collectives(algorithm) and algorithm.companion is None


def gossips(algorithm: Specification) -> bool:
    """Whether its ranks need letters: for exchanges, barriers, pairs, or a second activity."""
    return algorithm.collectives in _GOSSIP or algorithm.companion is not None


def gossips_in_pairs(algorithm: Specification) -> bool:
    """Whether others average with a rank's model while it computes, so that it needs a copy to compute with."""
    return algorithm.collectives is Collectives.PAIRS or algorithm.companion is not None


def check_transport_of(algorithm: Specification, transport: str) -> None:
    """Raise InputError, naming the algorithm, if buffers would be on devices and it has none: its letters go through host memory."""
    if transport in ON_DEVICE and not has_collectives(algorithm):
        how = "sends letters over MPI, through host memory" if gossips(algorithm) else "never communicates"
        raise InputError(
            f"transport = {transport!r}: {algorithm.name} has no collectives, and {how}: must be 'auto', 'shm' or 'mpi'"
        )


def _can_be_resident(algorithm: Specification) -> bool:
    models = algorithm.value is Value.MODEL and algorithm.collectives is not Collectives.WHOLE
    return models and has_collectives(algorithm) and not gossips(algorithm)


def require_models(algorithm: Specification) -> None:
    """Raise InputError, naming what is allowed, unless it averages models, in collectives alone: they can live in the kernel's buffers."""
    if not _can_be_resident(algorithm):
        allowed = ", ".join(name for name, one in ALGORITHMS.items() if _can_be_resident(one))
        raise InputError(
            f"resident = True: {algorithm.name} averages no models in collectives; must be False, or the algorithm one of {allowed}"
        )
