"""The wagma collective as the benchmarks call it, with the options that this build of it has, and the main of their ranks."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from wagma.errors import InputError, WagmaError
from wagma.real.bench.rounds import check_size, report
from wagma.real.collective import GroupAllreduce
from wagma.real.limited import agree

TIMEOUT_S = 120.0
STORED = {"bfloat16": "uint16"}
BFLOAT16_ONE = 0x3F80
PIECE = 10_000  # elements


def needed(mode: str, dtype: str) -> dict[str, Any]:
    """The options of `GroupAllreduce` that a mode and a dtype are."""
    return ({"resident": True} if mode == "resident" else {}) | ({"dtype": dtype} if dtype in STORED else {})


def knows(option: str) -> bool:
    """Whether `GroupAllreduce` has such an option."""
    return option in inspect.signature(GroupAllreduce).parameters


def options_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What `GroupAllreduce` is given beside its buffer. Raises InputError for an option that it does not have."""
    for name in asked:
        if not knows(name):
            raise InputError(
                f"GroupAllreduce has no option {name} in this build of wagma: it cannot be measured with {asked[name]!r}"
            )
    return dict(asked)


class Wagma:
    """One call: publish the model, average, have the average. mode "tensor": in the caller's array; "resident": in the library's."""

    def __init__(
        self, comm: Any, count: int, dtype: str, mode: str, group_size: int, options: Mapping[str, Any], syncs: bool = False
    ) -> None:
        asked = {**options, **needed(mode, dtype)}
        one = BFLOAT16_ONE if dtype == "bfloat16" else 1  # numpy has no bfloat16: its bits are those of an integer
        self._model = np.full(count, one, STORED.get(dtype, dtype))
        agree(comm, lambda: str(sorted(options_of(asked))), TIMEOUT_S)
        self._collective: Any = GroupAllreduce(
            comm, self._model, group_size, 1 if syncs else "never", timeout_s=TIMEOUT_S, **asked
        )
        self._resident = mode == "resident"
        if self._resident:
            del self._model
        self.fresh: list[bool] = []  # by version: whether this rank's own model was in the sum that it got
        self()
        model = self._collective.model if self._resident else self._model
        # In pieces: what a comparison of a whole model makes, malloc may keep, which would count as the library's memory.
        if not all((model[at : at + PIECE] == one).all() for at in range(0, count, PIECE)):
            raise WagmaError(f"rank {comm.rank}: the average of ones is {model.min()} to {model.max()}")

    def __call__(self) -> object:
        """Average once."""
        outcome = self._collective.average()
        self.fresh.append(outcome.fresh)
        # Where the parameters are now; they move with every average.
        return self._collective.model if self._resident else None

    @property
    def transport(self) -> str:
        """What moves the models."""
        return str(getattr(self._collective, "transport", "mpi"))

    @property
    def collective(self) -> Any:
        """The `GroupAllreduce`."""
        return self._collective

    def close(self) -> None:
        """Collective."""
        self._collective.close()


def run_on_ranks(measure: Callable[..., Any], arguments: list[str]) -> None:
    """A rank's main: `measure` on COMM_WORLD what the JSON in the first argument says; rank 0 reports."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    progress = (lambda done, total: report("progress", [done, total])) if comm.rank == 0 else None
    try:
        specification = json.loads(arguments[0])
        check_size(comm, specification)
        result = measure(comm, specification, progress)
    except WagmaError as error:  # one line; mpi4py would print a traceback
        print(error, file=sys.stderr, flush=True)
        comm.Abort(1)
        raise SystemExit(1) from None
    if result is not None:
        report("result", result)
