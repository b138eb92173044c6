"""Driving the protocol through what production seldom shows: the C++ checks of wagma._proof, and what Python adds to them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from wagma.errors import MissingDependencyError


def native_proof() -> Any:
    """The module wagma._proof. Raises MissingDependencyError."""
    try:
        return import_module("wagma._proof")
    except ImportError as error:
        raise MissingDependencyError(
            f"the native module wagma._proof cannot be imported ({error}): build wagma again, with a C++ compiler (docs/install.md)"
        ) from error
