"""What MPI's process managers say in between the ranks' output, and how it is told apart from what the ranks say."""

from __future__ import annotations

import re

#: How lines of MPICH's and Open MPI's begin, most of them about a failure that a rank has reported better.
LINE = re.compile(
    r"(Abort\(|=====|=   |YOUR APPLICATION TERMINATED|This typically refers|Please see the FAQ|MPI_ABORT was|with errorcode"
    r"|Abort is in progress|\d+ more process(es)? ha(s|ve) sent help message"
    r"|NOTE: invoking MPI_ABORT|You may or may not|exactly when Open MPI|\[(proxy|mpiexec)[:@]|Proc: \[|prterun |mpirun "
    r"|\[[\w.-]+:\d+\] |\0)"
)
#: Open MPI's messages stand between two of these, in any words, on standard error.
RULER = re.compile(r"-{70,}$")
BLOCK_LIMIT = 40  # lines: a rank's own ruler, without a second one, does not hide what comes after it for long


class Manager:
    """One stream of a job, line by line. blocks: whether Open MPI's messages may be in it."""

    def __init__(self, *, blocks: bool) -> None:
        self._blocks = blocks
        self._left = 0  # lines that the present block may still have

    def says(self, line: str) -> bool:
        """Whether the next line is the process manager's."""
        if self._blocks and RULER.match(line):
            self._left = 0 if self._left else BLOCK_LIMIT
            return True
        if self._left:
            self._left -= 1
            return True
        return LINE.match(line) is not None
