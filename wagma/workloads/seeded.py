"""Draws of torch from a seed of one's own, for models made on several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Protects torch's default generator and, with it, torch's own lock around that: reading its state takes that lock while Python's is held,
# and setting it may want Python's while that one is held, so that two threads that did both at once would wait for each other for ever.
_lock = threading.Lock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it, torch draws from `seed`; afterwards it goes on as if nothing had been drawn. One thread at a time."""
    with _lock, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
