"""Which algorithms real ranks can run: so far those on collectives that its kernel has. The one place that says so."""

from __future__ import annotations

from wagma.algorithms import ALGORITHMS, Collectives, Specification
from wagma.core.effects import Value
from wagma.errors import InputError

#: Not there yet: groups of gradients that accumulate, exchanges with neighbours, pairs, second activities.
_COLLECTIVES = (Collectives.NONE, Collectives.EVERY, Collectives.PERIODIC, Collectives.GROUPED)


def _is_real(algorithm: Specification) -> bool:
    gradients = algorithm.collectives is Collectives.GROUPED and algorithm.value is Value.GRADIENT
    return algorithm.collectives in _COLLECTIVES and not gradients and algorithm.companion is None


def real_algorithms() -> list[str]:
    """The names of all algorithms that real ranks can run, one's own registered ones included."""
    return [name for name, algorithm in ALGORITHMS.items() if _is_real(algorithm)]


def require_real(algorithm: Specification) -> Specification:
    """The algorithm itself. Raises InputError, naming what is allowed, if only the simulator has it so far."""
    if not _is_real(algorithm):
        allowed = ", ".join(real_algorithms())
        raise InputError(f"algorithm = {algorithm.name!r}: simulator only so far; real ranks have: {allowed}")
    return algorithm


def _averages_models(algorithm: Specification) -> bool:
    return algorithm.value is Value.MODEL and algorithm.collectives is not Collectives.NONE


def require_models(algorithm: Specification) -> None:
    """Raise InputError, naming what is allowed, unless it averages models: they are what can live in the kernel's buffers."""
    if not _averages_models(algorithm):
        allowed = ", ".join(name for name in real_algorithms() if _averages_models(ALGORITHMS[name]))
        raise InputError(
            f"resident = True: {algorithm.name} averages no models; must be False, or the algorithm one of {allowed}"
        )
