"""What all tests stand on."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """A shell that runs the tests in the background has them, and all that they start, ignore Ctrl-C; some test just that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
