"""Checkpoints on a file system: written so that a kill at any moment leaves what was complete before, read with nothing taken on trust.

    FOLDER/000007-iteration-350/model.safetensors     the model, which all ranks have in common
                                rank-00000.safetensors, rank-00000.json    what each rank has for itself
                                manifest.json         names all files with their sizes and SHA-256; written last

A checkpoint is complete if, and only if, it has a manifest. Before that is renamed into its place, every file that it names and their
folder have been told to the disk (fsync), by the rank that wrote them. Old checkpoints go after that, their manifests first. What
was left by a run that was killed in between has no manifest; it is ignored, and removed by the next save.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from wagma.errors import InputError, MissingDependencyError, WagmaError

FORMAT = "wagma checkpoint"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MODEL = "model.safetensors"
LAST_ITERATION = 2**53  # what every reader of JSON takes for the same number
_NAME = re.compile(r"(\d{6,})-iteration-(\d+)")
#: What a manifest has to say, and as what.
_FIELDS: dict[str, type] = {
    "format": str, "format_version": int, "wagma": str, "run": str, "sequence": int, "iteration": int, "ranks": int, "algorithm": str,
    "settings": dict, "optimizer": str, "state": list, "model": dict, "files": dict,
}  # fmt: skip

Manifest = dict[str, Any]


def rank_files(rank: int) -> tuple[str, str]:
    """(tensors, JSON) of what a rank has for itself."""
    return f"rank-{rank:05d}.safetensors", f"rank-{rank:05d}.json"


def require() -> None:
    """Raise MissingDependencyError without safetensors."""
    if find_spec("safetensors") is None:
        raise MissingDependencyError(
            "a checkpoint needs safetensors, which is not installed: pip install safetensors (docs/install.md)"
        )


# -- the only places that change anything on disk ---------------------------------------------------------------------------


def make_folder(path: Path) -> None:
    """A folder, with those that it is in; it may be there already."""
    path.mkdir(parents=True, exist_ok=True)


def write(path: Path, content: bytes) -> None:
    """A file's content, on the disk when this returns."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_tensors(path: Path, tensors: dict[str, Any]) -> None:
    """Tensors by name as a safetensors file, on the disk when this returns."""
    from safetensors.torch import save_file

    save_file(tensors, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def rename(source: Path, target: Path) -> None:
    """In one step."""
    os.replace(source, target)


def settle(folder: Path) -> None:
    """The names in a folder are on the disk when this returns."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """A file."""
    path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """A folder and what is in it."""
    shutil.rmtree(path, ignore_errors=True)


# -- writing ------------------------------------------------------------------------------------------------------------------


def begin(folder: Path, iteration: int) -> Path:
    """Rank 0, first: a folder for a new checkpoint. What killed saves have left goes."""
    new = [one for one in (folder, *folder.parents) if not one.exists()]
    make_folder(folder)
    for one in new:
        settle(one.parent)
    for path in _named(folder):
        if not (path / MANIFEST).exists():
            remove_folder(path)
    sequence = max((sequence_of(path) for path in _named(folder)), default=0) + 1
    path = folder / f"{sequence:06d}-iteration-{iteration}"
    make_folder(path)
    settle(folder)
    return path


def sealed(path: Path) -> dict[str, Any]:
    """What the manifest says of a file."""
    with open(path, "rb") as file:
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def finish(path: Path, manifest: Manifest) -> None:
    """Rank 0, last: from the rename on there is a new checkpoint."""
    for name, said in manifest["files"].items():
        found = (path / name).stat().st_size if (path / name).exists() else None
        if found != said["bytes"]:
            seen = "is not there" if found is None else f"has {found} bytes of {said['bytes']}"
            raise WagmaError(f"{path / name} {seen} for rank 0: the folder must be on a file system that all ranks share")
    write(path / f"{MANIFEST}.new", (json.dumps(manifest | {"checksum": checksum(manifest)}, indent=1) + "\n").encode())
    settle(path)  # the files that the manifest names
    rename(path / f"{MANIFEST}.new", path / MANIFEST)
    settle(path)
    settle(path.parent)


def prune(folder: Path, run: str, keep: int | None) -> None:
    """Of this run's checkpoints keep the newest ones; those of other runs are none of its business."""
    own = []
    for path in complete(folder):
        with suppress(InputError):  # a damaged one is left for whoever wants to look at it
            if read_manifest(path)["run"] == run:
                own.append(path)
    for path in own[len(own) if keep is None else keep :]:
        remove(path / MANIFEST)
        settle(path)  # never a manifest without its files
        remove_folder(path)


# -- reading ------------------------------------------------------------------------------------------------------------------


def sequence_of(path: Path) -> int:
    """The number of a checkpoint in its folder."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else 0


def _named(folder: Path) -> list[Path]:
    return sorted((p for p in folder.iterdir() if p.is_dir() and _NAME.fullmatch(p.name)), key=sequence_of, reverse=True)


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, the newest first."""
    return [path for path in _named(folder) if (path / MANIFEST).exists()] if folder.is_dir() else []


def find_checkpoint(folder: str | Path) -> Path | None:
    """The newest complete checkpoint in `folder`, or `folder` itself if it is one; None if there is none."""
    folder = Path(folder)
    if (folder / MANIFEST).exists():
        return folder
    return next(iter(complete(folder)), None)


def locate(folder: Path) -> Path:
    """As find_checkpoint. Raises InputError if there is none, and says what there is."""
    found = find_checkpoint(folder)
    if found is not None:
        return found
    if not folder.exists():
        raise InputError(f"checkpoint {folder}: there is no such folder")
    left = len(_named(folder)) if folder.is_dir() else 0
    why = f" ({left} that a save was killed in before they were complete)" if left else ""
    raise InputError(f"checkpoint {folder}: no complete checkpoint in it{why}")


def checksum(manifest: Manifest) -> str:
    """SHA-256 of all that a manifest says, but for this."""
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint. Raises InputError if it is damaged, foreign or of another format version."""
    where = f"checkpoint {path}: {MANIFEST}"
    try:
        found = json.loads((path / MANIFEST).read_bytes())
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is damaged: no JSON ({str(error).splitlines()[0]})") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        kind = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise InputError(f"{where} is not of wagma: format = {kind!r}, must be {FORMAT!r}")
    if found.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{where}: format_version = {found.get('format_version')!r}: wagma {found.get('wagma')} wrote it,"
            f" this one reads {FORMAT_VERSION}"
        )
    if found.get("checksum") != checksum(found):
        raise InputError(f"{where} is damaged: its checksum is not that of its content")
    for name, kind in _FIELDS.items():
        if type(found.get(name)) is not kind:
            raise InputError(f"{where}: {name} = {found.get(name)!r}: must be of type {kind.__name__}")
    if found["ranks"] < 1 or not 0 <= found["iteration"] <= LAST_ITERATION:
        raise InputError(
            f"{where}: ranks = {found['ranks']} and iteration = {found['iteration']}: must be at least 1, and from 0 to {LAST_ITERATION}"
        )
    _check_entries(where, found)
    return found


def _check_entries(where: str, manifest: Manifest) -> None:
    """Raise InputError unless what is in its lists and tables has the right form, too: nothing later looks at that."""
    for name in manifest["state"]:
        if type(name) is not str:
            raise InputError(f"{where}: state has {name!r}: must be names")
    for name, said in manifest["model"].items():
        match said:
            case [str(), [*sizes]] if all(type(size) is int for size in sizes):
                pass
            case _:
                raise InputError(f"{where}: model has {name!r} = {said!r}: must be a dtype and a shape")
    for name, said in manifest["files"].items():
        match said:
            case {"bytes": int(), "sha256": str()}:
                pass
            case _:
                raise InputError(f"{where}: files has {name!r} = {said!r}: must be bytes and sha256")


def check_file(path: Path, name: str, manifest: Manifest) -> Path:
    """A file of a checkpoint. Raises InputError unless it is what the manifest says, to the bit."""
    said = manifest["files"].get(name)
    if said is None:
        raise InputError(f"checkpoint {path}: {MANIFEST} names no {name}")
    try:
        found = sealed(path / name)
    except OSError as error:
        raise InputError(f"checkpoint {path}: {name} cannot be read: {error.strerror}") from error
    if found["bytes"] != said["bytes"]:
        raise InputError(f"checkpoint {path}: {name} has {found['bytes']} bytes, was written with {said['bytes']}")
    if found["sha256"] != said["sha256"]:
        raise InputError(f"checkpoint {path}: {name} is damaged: SHA-256 {found['sha256'][:12]}, was {said['sha256'][:12]}")
    return path / name


def read_tensors(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file. Raises InputError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"checkpoint {path.parent}: {path.name} cannot be read: {error}") from error
