"""Which hosts `mpiexec` will start ranks on: those that a user names, those of its own list, those that a resource manager has granted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from wagma.errors import InputError
from wagma.real import library

HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[1-9][0-9]*)?")
#: An mpiexec reads a list from here without being told: MPICH's, Open MPI's from version 5 on, and its older ones'.
LISTS = ("HYDRA_HOST_FILE", "PRTE_MCA_prte_default_hostfile", "OMPI_MCA_orte_default_hostfile")
#: How many hosts a job has, as Slurm says it.
NUMBERS = ("SLURM_JOB_NUM_NODES", "SLURM_NNODES")
#: Files of PBS and Grid Engine: the first word of each line is a host. LSF has names and numbers in a variable.
FILES = ("PBS_NODEFILE", "PE_HOSTFILE")
LSF = "LSB_MCPU_HOSTS"
#: Open MPI hands on its own variables and those that it is told of, MPICH all.
HANDED_ON = ("PYTHON", "MPI4PY_", "OMP_", "OPENBLAS_", "MKL_", "WAGMA_")
OPTIONS = {library.MPICH: "-hosts", library.OPEN_MPI: "--host"}


def check_hosts(hosts: str | None) -> None:
    """Raise InputError unless it is NAME:RANKS,NAME:RANKS,...; None is right, too."""
    for host in () if hosts is None else hosts.split(","):
        if HOST.fullmatch(host) is None:
            raise InputError(f"--hosts {hosts}: {host!r}: must be NAME or NAME:RANKS, with commas between them")


def several(hosts: str | None, environment: Mapping[str, str]) -> bool:
    """Whether ranks may be on other machines than this one."""
    if hosts is not None or any(environment.get(name) for name in LISTS):
        return True
    if any(environment.get(name, "").isdigit() and int(environment[name]) > 1 for name in NUMBERS):
        return True
    if len(set(environment.get(LSF, "").split()[::2])) > 1:
        return True
    return any(len(_first_words(environment[name])) > 1 for name in FILES if environment.get(name))


def words(hosts: str | None, environment: Mapping[str, str], family: str | None) -> list[str]:
    """Options of an mpiexec of that family: its hosts, and which variables of the ranks' environment go to other hosts."""
    chosen = [] if hosts is None else [OPTIONS.get(family or "", "-hosts"), hosts]
    if family == library.OPEN_MPI:
        for name in sorted(name for name in environment if name.startswith(HANDED_ON)):
            chosen += ["-x", name]
    return chosen


def _first_words(path: str) -> set[str]:
    with suppress(OSError):
        return {line.split()[0] for line in Path(path).read_text().splitlines() if line.split()}
    return set()
