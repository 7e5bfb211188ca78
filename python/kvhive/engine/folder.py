"""The folder that an engine persists into: one whole copy, and the name of it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

#: Names what is whole of a folder that was persisted into.
_CURRENT = "current"
#: What the coordinator remembers: tenants, their secrets, where slots are.
_CLUSTER = "cluster.backup"
#: The node's snapshot.
_BLOCKS = "blocks"
#: What whoever uses the node wants to know again.
_NOTES = "notes.json"


#: What a copy is called.
_COPY = re.compile(rb"[0-9a-f]{16}")


class Copy:
    """One copy in such a folder."""

    def __init__(self, path: Path) -> None:
        self.blocks = path / _BLOCKS
        self._cluster = path / _CLUSTER
        self._notes = path / _NOTES

    def write(self, cluster: bytes | None, notes: dict[str, int]) -> None:
        """Writes what is beside the blocks."""
        if cluster is not None:
            _write_whole(self._cluster, cluster)
        _write_whole(self._notes, json.dumps(notes).encode())

    def cluster(self) -> bytes:
        """Reads what the coordinator remembered."""
        return self._cluster.read_bytes()

    def notes(self) -> dict[str, int]:
        """Reads the notes.

        :raises ValueError: when these are none.
        """
        read = json.loads(self._notes.read_bytes())
        if not isinstance(read, dict):
            raise ValueError(f"{self._notes} holds no notes")
        return {str(name): int(note) for name, note in read.items()}


def is_there(folder: Path) -> bool:
    """Says whether something was persisted into a folder."""
    return (folder / _CURRENT).exists()


def current(folder: Path) -> Copy:
    """Returns what was persisted last.

    :raises FileNotFoundError: when nothing was.
    :raises OSError: when it cannot be told.
    """
    path = _current(folder)
    if path is None or not (path / _BLOCKS).exists():
        raise FileNotFoundError(f"nothing was persisted in {folder}")
    return Copy(path)


def replace(folder: Path, write: Callable[[Copy], None]) -> None:
    """Has a new copy be written, and lets go of the one before when all of it is there. Of one that fails nothing stays."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / secrets.token_hex(8)
    try:
        before = _current(folder)
    except OSError:
        # What cannot be found any more is nothing that a new copy takes the place of.
        before = None
    try:
        path.mkdir(mode=0o700)
        write(Copy(path))
        _write_whole(folder / _CURRENT, path.name.encode())
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    if before is not None:
        shutil.rmtree(before, ignore_errors=True)


def _current(folder: Path) -> Path | None:
    try:
        name = (folder / _CURRENT).read_bytes()
    except FileNotFoundError:
        return None
    if not _COPY.fullmatch(name):
        raise OSError(f"{folder / _CURRENT} is damaged: it does not name a copy")
    return folder / name.decode()


def _write_whole(path: Path, content: bytes) -> None:
    """Writes a file that only its owner may read, or leaves the one before."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
