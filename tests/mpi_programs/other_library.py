"""wagma with the extension of another environment, built against another MPI than mpi4py has opened: FILE of the extension."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.util import spec_from_file_location

import numpy as np
from ranks import COMM, say

from wagma import GroupAllreduce, WagmaError


class Other(MetaPathFinder):
    """Finds the extension, and nothing else, in the other environment."""

    def find_spec(self, name, path=None, target=None):
        return spec_from_file_location(name, sys.argv[1]) if name == "wagma._native_mpi" else None


sys.meta_path.insert(0, Other())
try:
    GroupAllreduce(COMM, np.zeros(10, np.float32), transport="mpi", timeout_s=20.0)
except WagmaError as error:
    say(f"refused: {error}")
