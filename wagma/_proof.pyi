# The checks of the protocol. Each section is the stub of one file in native/bindings.

from collections.abc import Callable, Sequence
from typing import Any

# --- bind_explore.cpp -----------------------------------------------------------------------------

class UsageError(ValueError): ...

class ExploreCase:
    def __init__(
        self,
        ranks: int,
        group_size: int,
        sync_period: int,
        iterations: Sequence[int],
        *,
        grouped: bool = True,
        accumulate: bool = False,
        initiators: int = 0,
        seed: int = 0,
        merge_once: bool = False,
        resident: bool = False,
        mutation: str = "none",
    ) -> None: ...

def explore(
    case: ExploreCase,
    *,
    max_states: int = 0,
    max_bytes: int = ...,
    symmetry: bool = True,
    order: bool = True,
    exact: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]: ...
def cross_check(
    case: ExploreCase,
    *,
    max_states: int = 0,
    max_bytes: int = ...,
    symmetry: bool = True,
    order: bool = True,
    exact: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]: ...

# --- bind_fuzz.cpp --------------------------------------------------------------------------------

def fuzz(first: int, seeds: int, mutation: str = "none", progress: Callable[[int], object] | None = None) -> dict[str, Any]: ...
def drawn(seed: int) -> dict[str, Any]: ...
def log(seed: int) -> dict[str, Any]: ...

MUTATIONS: tuple[str, ...]
