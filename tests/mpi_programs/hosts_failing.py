"""`wagma train` through wagma's own launcher with a training that ends on rank 3, of the other host, as $WAGMA_TEST_FAILURE says.

Without arguments: the launcher.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np

from wagma import GroupAllreduce
from wagma.cli import main
from wagma.errors import InputError
from wagma.real.launching import launch

LIMIT_S = 2.0
START_LIMIT_S = 6.0  # the run goes on for longer, so that the launcher has to hear that all ranks have begun


def fail(how: str) -> None:
    if how == "link":
        subprocess.run(["ip", "link", "set", "link0", "down"], check=True)
    elif how == "raises":
        raise ZeroDivisionError("by zero")
    elif how == "input":
        raise InputError("no such digit")
    elif how.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, how))


def train(scenario, algorithm, comm, progress=None, **options) -> None:
    """Instead of the real one, which would wait five minutes for a link that is down."""
    how = os.environ["WAGMA_TEST_FAILURE"]
    threads = comm.gather(os.environ.get("OMP_NUM_THREADS"))
    if comm.rank == 0:
        print(f"threads {threads}", flush=True)
    with GroupAllreduce(comm, np.zeros(1000, np.float32), 2, 3, timeout_s=LIMIT_S, watchdog_s=0) as collective:
        # Of a link that is down some hear in a group, others in the sync after it; a rank that fails does so before the others are done.
        end = {"nothing": round(1.5 * START_LIMIT_S / 0.1) // 3 * 3, "link": 100}.get(how, 8)
        for t in range(end):
            if t == 7 and comm.rank == 3:
                fail(how)
            collective.average()
            time.sleep(0.1)
        while how not in ("nothing", "link"):
            time.sleep(0.1)


if len(sys.argv) > 1:
    sys.modules["wagma.real.train"] = types.SimpleNamespace(train=train)
    sys.modules["wagma.real.checkpoints.run"] = types.SimpleNamespace(Saving=lambda *_: None)  # the real ones import torch
    sys.exit(main(sys.argv[1:]))
launch.START_LIMIT_S = START_LIMIT_S
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
sys.exit(launch.run_ranks(4, [Path(__file__).stem, "train", "digits", "-q"]))
