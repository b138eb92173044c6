"""Whether a file or a folder can be written, asked before the work that would fill it."""

from __future__ import annotations

import os
from pathlib import Path


def why_not_writable(name: str | Path) -> str | None:
    """What keeps a file of that name from being written; None if nothing does."""
    path = Path(name)
    if not str(name) or path.is_dir():
        return "a folder, not a file"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return "no permission to write there"
    return None


def why_no_folder(name: str | Path) -> str | None:
    """What keeps files from being written into a folder of that name, which may have to be made; None if nothing does."""
    path = Path(name)
    # os.path: Path.exists would raise where a folder on the way may not be looked into.
    there = next(place for place in (path, *path.absolute().parents) if os.path.exists(place))
    if not there.is_dir():
        return f"{there} is a file, not a folder"
    if not os.access(there, os.W_OK):
        return f"no permission to write in {there}"
    return None
