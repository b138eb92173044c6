"""What GroupAllreduce cannot do: each rank says what it was told in each case. All cases in one job: refused once, ranks go on."""

from __future__ import annotations

import resource
import signal
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
from ranks import COMM, RANK, say

from wagma import GroupAllreduce, WagmaError
from wagma.real import node

COUNT = 100_000


def attempt(name: str, count: int = COUNT, stored: str = "float32", **options) -> None:
    """Two averages, or one line that says why not."""
    begun = time.monotonic()
    try:
        model = np.full(count, RANK, stored)
        with GroupAllreduce(COMM, model, 2, 1, timeout_s=20.0, **options) as collective:
            collective.average()
            assert (model == np.arange(COMM.size).mean()).all()
            collective.average()
        say(f"{name}: works: {collective.transport}")
    except WagmaError as error:
        say(f"{name}: {type(error).__name__}: {error}")
    assert time.monotonic() - begun < 10.0
    COMM.Barrier()


def alone(value, other):
    """`value` on rank 1, `other` elsewhere."""
    return value if RANK == 1 else other


@contextmanager
def replaced(rank: int, name: str, value):
    """wagma.real.node.NAME on one rank."""
    before = getattr(node, name)
    if rank == RANK:
        setattr(node, name, value)
    yield
    setattr(node, name, before)


@contextmanager
def small_files():
    """As if `ulimit -f` were 1 MB, on rank 0, which makes the memory. Python ignores SIGXFSZ, else that would end the process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN
    if RANK == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def memory() -> None:
    """Ranks that cannot share memory, or not enough of it."""
    for transport in ("shm", "auto"):
        with small_files():
            attempt(f"small {transport}", transport=transport)
        with replaced(2, "machine", lambda: "another one"):
            attempt(f"apart {transport}", transport=transport)
        with replaced(0, "os", SimpleNamespace(getpid=lambda: 1 << 30)):  # no such process: nothing to open
            attempt(f"closed {transport}", transport=transport)


def different() -> None:
    """Ranks that do not agree; rank 1 is the odd one."""
    attempt("count", count=alone(COUNT - 1, COUNT))
    attempt("dtype", stored=alone("float64", "float32"))
    attempt("bits", stored=alone("uint16", "float16"), dtype=alone("bfloat16", None))
    attempt("resident", resident=alone(True, False))
    attempt("transport", transport=alone("mpi", "shm"))
    attempt("seed", seed=alone(1, 0))
    attempt("merge_once", merge_once=alone(True, False))
    attempt("who may", initiators=alone("majority", "solo"))


def wrong() -> None:
    """One rank asks for what nobody may have."""
    attempt("unknown", transport=alone("tcp", "auto"))
    attempt("negative", watchdog_s=alone(-1.0, 60.0))
    attempt("endless", watchdog_s=alone(float("nan"), 60.0))
    attempt("no seed", seed=alone(-1, 0))
    attempt("too many", initiators=alone(5, "solo"))
    attempt("word", initiators=alone("all", "solo"))


memory()
different()
wrong()
for last in sys.argv[1:]:
    attempt(last, transport=last)
