"""Folders of weights and state that are either whole or not there.

A folder is written beside its place, every file hashed into `hashes.json`, synced, then renamed.
`verify` re-hashes at load: truncated, bit-flipped and half-written folders are refused.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.core.files import sha256_file

HASHES = "hashes.json"
STEP = "step-"


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Call `fill(temporary)` and put the result at `target` in one rename.

    Raises:
        RunFailed: no space or no permission; `target` is then as it was before.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    for left in leftovers(target):  # of writers that were killed; the run's lock admits one writer at a time
        shutil.rmtree(left, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        seal(temporary)
        if target.exists():
            os.replace(target, old)
        os.replace(temporary, target)
        _sync(target.parent)
    except OSError as error:
        raise RunFailed(
            f"Cannot write checkpoint {target}: {error.strerror or error}. Free space, then repeat with --resume."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def leftovers(target: Path) -> list[Path]:
    """Folders beside `target` that a killed writer of it did not put into place or away."""
    return [item for end in ("tmp", "old") for item in target.parent.glob(f".{target.name}.*.{end}")]


def seal(folder: Path) -> None:
    """Hash every file of `folder` into hashes.json and sync all to disk."""
    files = sorted(item for item in folder.rglob("*") if item.is_file() and item.name != HASHES)
    hashes = {str(item.relative_to(folder)): sha256_file(item) for item in files}
    (folder / HASHES).write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")
    for item in [*files, folder / HASHES]:
        item.chmod(0o644)  # safetensors writes 0600, which other users of a shared folder cannot read
        _sync(item)


def verify(folder: Path) -> None:
    """Check `folder` against its hashes.

    Raises:
        OnpolError: a file is missing or differs; the message names it.
    """
    file = folder / HASHES
    if not file.is_file():
        raise OnpolError(f"Checkpoint {folder} has no {HASHES}: it was not finished. Use an earlier one.")
    try:
        hashes = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise OnpolError(f"Checkpoint {folder}: {HASHES} is damaged. Use an earlier one.") from error
    for name, expected in hashes.items():
        if not (folder / name).is_file():
            raise OnpolError(f"Checkpoint {folder}: {name} is missing. Use an earlier one.")
        if sha256_file(folder / name) != expected:
            raise OnpolError(f"Checkpoint {folder}: {name} does not match its hash (truncated or damaged).")


def step_folder(state: Path, step: int) -> Path:
    """Where the state after `step` optimiser steps lives."""
    return state / f"{STEP}{step:07d}"


def steps_saved(state: Path) -> list[int]:
    """Steps with a state folder, ascending. Unverified."""
    if not state.is_dir():
        return []
    return sorted(int(item.name.removeprefix(STEP)) for item in state.iterdir() if item.name.startswith(STEP))


def latest_valid(state: Path) -> tuple[int, Path] | None:
    """The newest state that verifies, None when there is no state at all.

    Raises:
        OnpolError: states exist and none verifies. A damaged newest one is skipped with a log line.
    """
    from onpol_cli.core.console import LOGGER

    steps = steps_saved(state)
    reason = ""
    for step in reversed(steps):
        folder = step_folder(state, step)
        try:
            verify(folder)
        except OnpolError as error:
            reason = str(error)
            LOGGER.warning("%s Trying the state before it.", error)
            continue
        return step, folder
    if steps:
        raise OnpolError(f"No usable state in {state}: {reason}")
    return None


def prune(state: Path, keep: int) -> None:
    """Delete all but the newest `keep` states."""
    for step in steps_saved(state)[: -keep if keep else None]:
        shutil.rmtree(step_folder(state, step), ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
