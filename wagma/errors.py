"""Everything wagma raises on purpose: one line with the thing, its value, what is allowed, and the rank where there are several."""

from __future__ import annotations


class WagmaError(Exception):
    """Base of all errors that wagma raises on purpose."""


class InputError(WagmaError, ValueError):
    """Bad input: a scenario, an option, a trace file. The command line ends with exit status 2."""


class MissingDependencyError(WagmaError, ImportError):
    """Something optional is needed here and not installed; the message says what to install."""


class ProtocolError(WagmaError, RuntimeError):
    """A decision machine was given an event that its state does not allow: a defect of the driver, or of a peer."""


class CollectiveTimeout(WagmaError, TimeoutError):
    """A wait reached its limit; the message says which rank waited in which version for whom."""


class PeerFailed(WagmaError, RuntimeError):
    """Another rank of the run failed; the message names it and its error."""
