"""Everything wagma raises on purpose: one line with the thing, its value, what is allowed, and the rank where there are several.

WagmaError
  InputError (ValueError)              bad input; nothing has happened, or nothing that the message does not say
    ModelMismatch                      the ranks' models differ in a parameter, a shape or a dtype
    ModelChanged                       a parameter was replaced, frozen, added or moved after `distribute`
  NotFinite (ArithmeticError)          NaN or infinity in what was to be averaged into the other ranks' models
  MissingDependencyError (ImportError) something optional is not installed
  CollectiveTimeout (TimeoutError)     a wait reached its limit
  PeerFailed (RuntimeError)            another rank failed
  DeviceError                          a GPU or its driver refused something
    OutOfDeviceMemory (MemoryError)    too little of its memory is free
  ProtocolError (RuntimeError)         a defect
"""

from __future__ import annotations


class WagmaError(Exception):
    """Base of all errors that wagma raises on purpose."""


class InputError(WagmaError, ValueError):
    """Bad input: a scenario, an option, a trace file. The command line ends with exit status 2."""


class ModelMismatch(InputError):
    """The ranks' models differ; raised on every rank, naming one that differs, and the first parameter or buffer in which it does."""


class ModelChanged(InputError):
    """A parameter of a distributed model was replaced, frozen, unfrozen, added, removed or moved, or has another shape or dtype."""


class NotFinite(WagmaError, ArithmeticError):
    """A parameter or gradient holds NaN or infinity, and was not averaged into the other ranks' (`check_finite`); names it and the rank."""


class MissingDependencyError(WagmaError, ImportError):
    """Something optional is needed here and not installed; the message says what to install."""


class ProtocolError(WagmaError, RuntimeError):
    """A decision machine was given an event that its state does not allow: a defect of the driver, or of a peer."""


class CollectiveTimeout(WagmaError, TimeoutError):
    """A wait reached its limit; the message says which rank waited in which version for whom."""


class PeerFailed(WagmaError, RuntimeError):
    """Another rank of the run failed; the message names it and its error."""


class DeviceError(WagmaError):
    """A device or its driver refused something; the message names the device, the call, what was asked for and what it said."""


class OutOfDeviceMemory(DeviceError, MemoryError):
    """There is too little memory on a device; the message says for what, how much was asked for and how much is free."""
