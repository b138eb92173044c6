"""Runs one rank as a child process and reports how it ended, before MPI's process manager can learn of it.

`python -m wagma.real.launching.supervise CHANNEL COMMAND...`. A rank that is killed cannot say so itself, and a process
manager kills all the others at once: whoever looks from outside does not see who was first. This process
speaks first, and ends as its child did.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

from wagma.real.launching.channel import RANK_VARIABLES, Sender, wait_until_unread

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SIGNALLED = 128  # added to a signal's number, as shells do


def main(arguments: list[str]) -> int:
    """Run the command; returns its exit status."""
    channel, *command = arguments
    rank = next((int(os.environ[name]) for name in RANK_VARIABLES if name in os.environ), 0)
    # Now and not at the end: ranks of other hosts notice soon when this one dies, and their own end must not be heard first.
    sender = Sender(channel, rank)
    # The connection to the process manager is a file that the rank inherits.
    child = subprocess.Popen(command, close_fds=False)
    for number in FORWARDED:
        signal.signal(number, lambda caught, _: child.send_signal(caught))
    threading.Thread(target=_follow, args=(channel, child), daemon=True).start()
    code = child.wait()
    sender.send("exited", code=code)
    return code if code >= 0 else SIGNALLED - code


def _follow(channel: str, child: subprocess.Popen[bytes]) -> None:
    """A thread: end the rank if the launcher, killed, cannot do so any more."""
    if wait_until_unread(channel):
        child.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
