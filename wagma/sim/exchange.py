"""Who sends how many bytes to whom while a group reduces: schedules of pairwise messages for a group of any length.

butterfly: recursive doubling, the whole value in each of log2 n phases (W section 3). halving_doubling: recursive halving, then
doubling (Rabenseifner, ICCS 2004), about twice the value in all, which is what MPI libraries do with long messages. For a
length that is no power of two the members beyond the largest one hand their value to a partner first and get the result
last.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple


class Phase(NamedTuple):
    """What one member does in one phase: send `size` bytes to member `to`, and wait for a message if `waits`.

    Members are indices into the group; `to` None sends nothing. The receiver expects the message in its own phase `to_phase`:
    phases are counted per member, and members beyond the largest power of two have fewer. `adds`: how many of the bytes that it
    receives the member adds to its own; the others are parts of the sum.
    """

    to: int | None
    to_phase: int
    waits: bool
    size: int
    adds: int = 0


@lru_cache(maxsize=256)
def phases(kind: str, length: int, size: int) -> tuple[tuple[Phase, ...], ...]:
    """For each member of a group of `length` its phases, in order, for a value of `size` bytes."""
    core = 1 << (length.bit_length() - 1)
    members: list[list[Phase]] = [[] for _ in range(length)]

    def message(sender: int, receiver: int, adds: int) -> None:
        members[sender].append(Phase(receiver, len(members[receiver]), False, size))
        members[receiver].append(Phase(None, 0, True, 0, adds))

    for extra in range(core, length):
        message(extra, extra - core, size)
    for bit, amount, adds in core_phases(kind, core, size):
        expected = [len(members[i]) for i in range(core)]
        for i in range(core):
            members[i].append(Phase(i ^ bit, expected[i ^ bit], True, amount, adds))
    for extra in range(core, length):
        message(extra - core, extra, 0)
    return tuple(tuple(member) for member in members)


def core_phases(kind: str, length: int, size: int) -> list[tuple[int, int, int]]:
    """(bit in which the partner differs, bytes, how many of them are added up) of each phase among a power of two of members."""
    bits = [1 << k for k in range(length.bit_length() - 1)]
    if kind == "butterfly":
        return [(bit, size, size) for bit in bits]
    halving = [(bit, -(-size // (2 * bit))) for bit in bits]
    return [(bit, part, part) for bit, part in halving] + [(bit, part, 0) for bit, part in reversed(halving)]
