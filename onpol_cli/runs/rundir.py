"""One run's directory: exclusive, append-only, resumable.

Layout: `config.yaml manifest.json metrics.jsonl samples.jsonl checkpoint/ best/ state/ run.log`.
Owns the lock and the line files; `runs.checkpoint` owns the folders of weights.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from onpol_cli.core.console import LOGGER
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.core.files import make_folder, write_atomic, write_json
from onpol_cli.runs.checkpoint import settle

MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
CONFIG = "config.yaml"
LOCK = ".lock"
LOCK_TRIES = 5


class RunDir:
    """A run directory opened for writing. Use as a context manager: leaving it releases the lock."""

    def __init__(self, path: Path, resumed: bool) -> None:
        self.path = path
        self.resumed = resumed
        self._lock = _acquire(path)
        self._files: dict[str, IO[str]] = {}

    @classmethod
    def open(cls, path: Path, *, resume: bool) -> RunDir:
        """Create `path`, or continue in it when `resume`.

        Raises:
            OnpolError: it exists already and `resume` is off, or another process is writing it.
        """
        exists = path.is_dir() and any(item.name != LOCK for item in path.iterdir())
        if exists and not resume:
            raise OnpolError(
                f"Run directory {path} exists already. Add --resume to go on with it, or choose run.name=OTHER."
            )
        if path.exists() and not path.is_dir():
            raise OnpolError(f"{path} is a file, not a run directory. Choose run.name=OTHER or another folder.")
        try:
            make_folder(path)
        except OSError as error:
            raise OnpolError(f"Cannot create {path}: {error.strerror}. Choose another paths.runs.") from error
        run = cls(path, resumed=exists)
        for folder in (run.path, run.state):  # what a killed writer left; steps of its states may never come again
            settle(folder)
        return run

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def checkpoint(self) -> Path:
        """Folder of the final weights (Hugging Face layout)."""
        return self.path / "checkpoint"

    @property
    def state(self) -> Path:
        """Folder of resumable states."""
        return self.path / "state"

    def manifest(self) -> dict[str, Any]:
        """The manifest as written so far."""
        return read_manifest(self.path)

    def update_manifest(self, **facts: Any) -> None:
        """Merge `facts` into manifest.json (atomic)."""
        write_json(self.path / MANIFEST, {**self.manifest(), **facts})

    def append(self, file: str, rows: Iterable[dict[str, Any]]) -> None:
        """Append `rows` to a line file and flush, so that an interruption loses none.

        Raises:
            RunFailed: they cannot be written.
        """
        try:
            if file not in self._files:
                drop_torn_line(self.path / file)
                self._files[file] = (self.path / file).open("a", encoding="utf-8")
            handle = self._files[file]
            for row in rows:
                handle.write(json.dumps(row, ensure_ascii=False, allow_nan=True) + "\n")
            handle.flush()
        except OSError as error:
            with suppress(RunFailed):  # closing tries the same bytes again, of which this error tells
                self._close(file)
            raise self._unwritten(file, error) from error

    def log(self, row: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        self.append(METRICS, [row])

    def keep_steps_before(self, step: int) -> None:
        """Drop metric lines of `step` and later: they are about to be made again."""
        kept = [row for row in read_lines(self.path / METRICS) if int(row.get("step", -1)) < step]
        self._close(METRICS)
        write_atomic(self.path / METRICS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))

    def _unwritten(self, file: str, error: OSError) -> RunFailed:
        return RunFailed(f"Cannot write {self.path / file}: {error.strerror}. Free space, then repeat with --resume.")

    def _close(self, file: str) -> None:
        """Close a line file if it is open; RunFailed for bytes that only now prove to have no room (NFS, quotas)."""
        handle = self._files.pop(file, None)
        try:
            if handle is not None:
                handle.close()
        except OSError as error:
            raise self._unwritten(file, error) from error

    def close(self) -> None:
        """Close the line files and release the lock. Its file stays: deleting it would let two writers in.

        Raises:
            RunFailed: rows that nothing was told about cannot be written. The lock is released all the same.
        """
        failed = []
        for file in list(self._files):
            try:
                self._close(file)
            except RunFailed as error:
                failed.append(error)
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if failed:
            raise failed[0]

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.close()
        except RunFailed as error:
            if kind is None:
                raise
            LOGGER.warning("%s", error)  # what the run ends of is told by the error under way


def read_manifest(path: Path) -> dict[str, Any]:
    """manifest.json of a run directory, {} when there is none yet."""
    file = path / MANIFEST
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise OnpolError(f"{file} is not JSON ({error}). The run is damaged; remove it or choose another.") from error
    assert isinstance(value, dict)
    return value


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a line file. A torn last line (killed while writing) is left out; a torn middle is an error."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number >= len(lines) - 1:
                return
            raise OnpolError(f"{path}, line {number}: not JSON ({error}).") from error


def drop_torn_line(path: Path, size: int = 1 << 16) -> None:
    """Cut off a last line without its end, as a killed writer leaves it; what is appended would join it."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - size)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        file.truncate(end)


def last_line(path: Path, size: int = 1 << 16) -> dict[str, Any]:
    """The newest whole row of a line file, reading only its last `size` bytes; {} if there is none."""
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        lines = file.read().decode("utf-8", errors="replace").split("\n")
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            return row
    return {}


def is_locked(path: Path) -> bool:
    """Whether a living process is writing the run directory `path`."""
    try:
        handle = (path / LOCK).open("r", encoding="utf-8")
    except OSError:
        return False
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _lock(handle: IO[str]) -> None:
    """Take the writer's lock; a look by `is_locked` holds it for an instant, so a refusal is tried again."""
    for _ in range(LOCK_TRIES - 1):
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(0.02)
    return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _acquire(path: Path) -> IO[str] | None:
    handle = (path / LOCK).open("a+", encoding="utf-8")
    try:
        _lock(handle)
    except OSError as error:
        handle.seek(0)
        owner = handle.read().strip() or "unknown"
        handle.close()
        raise OnpolError(
            f"Run {path.name} is being written by process {owner}. Wait for it, or choose run.name=OTHER."
        ) from error
    with suppress(OSError):  # the number is only for a message; on a full disk the lock holds without it
        handle.truncate(0)
        os.write(handle.fileno(), str(os.getpid()).encode())
    return handle
